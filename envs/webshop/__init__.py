"""WebShop (Yao et al. 2022, arXiv 2207.01206): buy what an instruction asks for, from an embedded or the real catalogue."""

from stepreward.envs.webshop.env import WebShopEnv, make
from stepreward.envs.webshop.presets import PRESETS, Settings, settings
from stepreward.envs.webshop.prompts import prompts

POOL = "inline"

__all__ = ["POOL", "PRESETS", "Settings", "WebShopEnv", "make", "prompts", "settings"]
