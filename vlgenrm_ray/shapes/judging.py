"""The judge's two prompts in the world's short words; the judge keeps equal texts as its `shapes_*` prompt files."""


def cot_prompt(question: str, response: str) -> str:
    """What the judge is asked for a critique."""
    return f"Question: {question}\nResponse: {response}\nCheck each claim against the image, then give a verdict."


def direct_prompt(question: str, response: str) -> str:
    """What the judge is asked for a bare verdict."""
    return f"Question: {question}\nResponse: {response}\nIs the response right? Answer Yes or No."
