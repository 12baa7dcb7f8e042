"""The report's style sheet, with a light and a dark theme, for screens of a phone's width and wider."""

CSS = """
:root {
  color-scheme: light dark;
  --paper: #fbfbfa; --card: #ffffff; --ink: #1d2430; --soft: #5f6b7a; --faint: #a9b2bd; --line: #e3e6ea;
  --good: #1a8f4f; --bad: #c9364a; --warn: #fff4d6; --warn-ink: #6b4e00;
  --c1: #2563eb; --c2: #d9730d; --c3: #1a8f4f; --c4: #8b47c9; --c5: #8a94a3;
  --c6: #0f8b99; --c7: #c2307f; --c8: #7a6a1f;
}
@media (prefers-color-scheme: dark) {
  :root {
    --paper: #14171c; --card: #1c2027; --ink: #e4e8ee; --soft: #9aa6b5; --faint: #5c6673; --line: #2c323b;
    --good: #4cc38a; --bad: #f2707f; --warn: #3a2f10; --warn-ink: #ffd98a;
    --c1: #7aa2ff; --c2: #f0a04b; --c3: #4cc38a; --c4: #bf8df2; --c5: #8a94a3;
    --c6: #4fc0cc; --c7: #ee82b8; --c8: #c9b458;
  }
}
* { box-sizing: border-box; }
body {
  margin: 0 auto; padding: 2.2rem clamp(.9rem, 4vw, 2.5rem) 4rem; max-width: 1240px; background: var(--paper);
  color: var(--ink); font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif;
  font-variant-numeric: tabular-nums; -webkit-text-size-adjust: 100%;
}
h1 { font-size: clamp(1.5rem, 4.5vw, 2.1rem); line-height: 1.2; margin: 0 0 .5rem; letter-spacing: -.01em;
  overflow-wrap: anywhere; }
h2 { font-size: 1.2rem; margin: 2.6rem 0 .8rem; }
h3 { font-size: 1rem; margin: 0; overflow-wrap: anywhere; }
.lead { max-width: 68ch; margin: 0; }
.facts, figcaption span, .soft { color: var(--soft); font-size: .86rem; }
.facts { margin: .1rem 0 .8rem; }
.notice { background: var(--warn); color: var(--warn-ink); padding: .6rem .9rem; border-radius: 8px;
  overflow-wrap: anywhere; margin: .8rem 0; font-size: .92rem; }
.numbers { display: flex; flex-wrap: wrap; gap: .8rem; margin: 1.3rem 0 0; }
.numbers div { flex: 1 1 10rem; background: var(--card); border: 1px solid var(--line); border-radius: 10px;
  padding: .7rem 1rem; }
.numbers b { display: block; font-size: 1.6rem; line-height: 1.25; letter-spacing: -.01em; }
.numbers span { color: var(--soft); font-size: .84rem; display: block; line-height: 1.4; }
.table { overflow-x: auto; background: var(--card); border: 1px solid var(--line); border-radius: 10px;
  padding: .3rem .9rem; }
.data { width: 100%; border-collapse: collapse; font-size: .9rem; }
.data th, .data td { text-align: left; padding: .4rem .8rem .4rem 0; vertical-align: baseline; }
.data tr + tr > *, .data thead + tbody tr > * { border-top: 1px solid var(--line); }
.data th { font-weight: 600; }
.data thead th { color: var(--soft); font-weight: 400; font-size: .84rem; }
.data td { white-space: nowrap; }
.data td span { color: var(--soft); font-size: .84rem; }
.data .meaning { color: var(--soft); font-size: .86rem; white-space: normal; min-width: 14rem; width: 62%; }
.curves { display: grid; gap: 1rem; grid-template-columns: repeat(auto-fill, minmax(min(100%, 330px), 1fr)); }
figure { margin: 0; background: var(--card); border: 1px solid var(--line); border-radius: 10px;
  padding: .8rem .9rem .5rem; display: flex; flex-direction: column; }
figcaption { font-weight: 600; font-size: .95rem; line-height: 1.35; margin-bottom: .4rem; }
figcaption span { display: block; font-weight: 400; }
figure svg { width: 100%; height: auto; display: block; margin-top: auto; }
figure svg text { font-family: inherit !important; }
.episode { background: var(--card); border: 1px solid var(--line); border-radius: 10px; padding: 1rem 1.1rem;
  margin-bottom: 1rem; }
.tree { overflow-x: auto; font-size: .86rem; }
.tree p { margin: 0 0 .3rem; }
.tree ul { list-style: none; margin: 0; padding: 0 0 0 1.1rem; border-left: 1px solid var(--line); }
.tree li { margin: .25rem 0; white-space: nowrap; }
.badge { font-size: .74rem; font-weight: 600; padding: .08rem .55rem; border-radius: 99px;
  border: 1px solid var(--line); color: var(--soft); white-space: nowrap; vertical-align: .1em; }
.badge.good { color: var(--good); border-color: currentColor; }
.badge.bad { color: var(--bad); border-color: currentColor; }
.steps { list-style: none; margin: 0; padding: 0; display: grid; gap: 1rem .9rem;
  grid-template-columns: repeat(auto-fill, minmax(118px, 1fr)); }
.steps.wide { grid-template-columns: repeat(auto-fill, minmax(230px, 1fr)); }
.view pre.prose { white-space: pre-wrap; overflow-wrap: anywhere; }
.step { position: relative; min-width: 0; font-size: .8rem; line-height: 1.35; }
.number { color: var(--soft); font-size: .72rem; margin-bottom: .15rem; }
.view { overflow: auto; max-height: 16rem; }
.view pre { font-size: .7rem; }
.board { display: block; width: 100%; height: auto; border-radius: 6px; }
.final .board { outline: 2px solid var(--faint); outline-offset: -2px; }
.final.good .board { outline-color: var(--good); }
.final.bad .board { outline-color: var(--bad); }
.action { margin: .35rem 0 .2rem; font-weight: 600; overflow-wrap: anywhere; }
.final.good .action { color: var(--good); }
.final.bad .action { color: var(--bad); }
.arrow { font-size: 1.15rem; line-height: 1; }
.none, .idle { color: var(--bad); font-weight: 400; }
.idle { font-size: .72rem; }
.idle-step .view { opacity: .72; }
.credit b { font-size: .95rem; }
.credit.good b { color: var(--good); }
.credit.bad b { color: var(--bad); }
.credit .soft { display: block; font-size: .72rem; line-height: 1.2; }
.bar { display: block; position: relative; height: 7px; border-radius: 3px; margin: .15rem 0 .3rem;
  background: linear-gradient(var(--faint), var(--faint)) center / 1px 100% no-repeat, var(--line); }
.bar i { position: absolute; top: 0; bottom: 0; border-radius: 3px; }
.good .bar i { background: var(--good); }
.bad .bar i { background: var(--bad); }
dl { display: grid; grid-template-columns: auto 1fr; gap: 0 .5rem; margin: 0; color: var(--soft); font-size: .74rem; }
dd { margin: 0; text-align: right; white-space: nowrap; }
.final dd { text-align: left; }
details { margin-top: .9rem; }
summary { cursor: pointer; color: var(--soft); font-size: .9rem; }
pre { margin: 0; font: .78rem/1.35 ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; white-space: pre-wrap;
  overflow-wrap: anywhere; }
.view pre { white-space: pre; overflow-wrap: normal; }
.outputs { padding-left: 2rem; margin: .6rem 0 0; font-size: .78rem; color: var(--soft); }
.outputs li { margin-bottom: .3rem; }
.config { width: 100%; border-collapse: collapse; font-size: .84rem; margin-top: .6rem; }
.config td { border-top: 1px solid var(--line); padding: .25rem .4rem; vertical-align: top; overflow-wrap: anywhere; }
.config td:first-child { color: var(--soft); width: 45%; }
"""
