"""Which data a run belongs to: weights must not meet token ids that mean other text than those they have seen."""

from blockwise import UserError, print0, warn
from blockwise.loader import tokenizer_digest
from blockwise.tokenizer import Tokenizer, json_in, read_tokenizer_json

SAMPLE = 4096  # tokens of validation text on which two tokenizers are compared


def check_tokenizer(description, data, source):
    """Raises UserError if the data set has another tokenizer than the checkpoint `source`, which has this one."""
    if tokenizer_digest(description) != data.identity["tokenizer"]:
        raise other_tokenizer(source, description["tokenizer"], data)


def check_checkpoint(checkpoint, data, source):
    """Whether the checkpoint has seen the same validation text; what changed is printed. Raises as check_tokenizer."""
    check_tokenizer(checkpoint["tokenizer"], data, source)
    seen = checkpoint["data"]
    changed = [split for split in ("train", "val") if seen and seen[split] != data.identity[split]]
    if changed:
        files = " and ".join(f"{split}.bin" for split in changed)
        print0(f"  data: {source} has seen another {files} than data set {data.name} has now")
    return "val" not in changed


def check_pretrained(folder, data, source):
    """Raises UserError if a Hugging Face folder's tokenizer gives the validation text other ids than the data set's.

    By a sample of text, since one tokenizer has many descriptions. Where one of the two cannot be had, a warning.
    """
    try:
        of_data = Tokenizer(data.tokenizer)
        of_weights = Tokenizer(read_tokenizer_json(json_in(folder), str(folder)))
    except UserError as error:
        return warn(f"the tokenizers of {source} and of data set {data.name} could not be compared: {error}")
    ids = [i for i in data.val.ids()[:SAMPLE].tolist() if i != of_data.end_of_text]
    text = of_data.decode(ids).strip("\ufffd")  # a cut character at either end
    if of_weights.encode(text) != of_data.encode(text):
        raise other_tokenizer(source, of_weights.name, data)


def other_tokenizer(source, name, data):
    return UserError(
        f"{source} belongs to another tokenizer ({name}) than data set {data.name} ({data.tokenizer['tokenizer']}), "
        "so that token ids mean other text: expected data prepared with its tokenizer"
    )
