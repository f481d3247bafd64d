"""What tests compare the reading of texts with."""


def split_text(text: str, train_fraction: float) -> tuple[str, str]:
    """Cut a text after `train_fraction` of its characters, as the tutorial does: (training, validation)."""
    cut = int(train_fraction * len(text))
    return text[:cut], text[cut:]
