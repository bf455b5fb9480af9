"""All formats there are, by the word for them on the command line."""

from retnet.hub.foreign.fla import FLA
from retnet.hub.foreign.format import Format
from retnet.hub.foreign.llama import LLAMA, MISTRAL
from retnet.hub.foreign.mpt import MPT
from retnet.hub.foreign.own import OWN
from retnet.hub.foreign.refused import refuse_known, unknown
from retnet.hub.foreign.rwkv import RWKV4, RWKV_CPP, RWKV_HF
from retnet.hub.foreign.syncdoth import SYNCDOTH
from retnet.hub.foreign.tensors import Source
from retnet.hub.foreign.torchscale import TORCHSCALE

FORMATS: dict[str, Format] = {
    format_.name: format_
    for format_ in (
        *(OWN, TORCHSCALE, SYNCDOTH, FLA),
        *(RWKV4, RWKV_HF, RWKV_CPP),
        *(LLAMA, MISTRAL, MPT),
    )
}


def recognise(source: Source) -> tuple[Format, str]:
    """The format of a checkpoint, and its version in words.

    Raises:
        ValueError: it is none that is known; the message names what it is, or seems to be.
    """
    if not OWN.recognise(source):
        refuse_known(source)
    for format_ in FORMATS.values():
        version = format_.recognise(source)
        if version is not None:
            return format_, version
    raise unknown(source, ", ".join(FORMATS))


def format_named(name: str) -> Format:
    """The format of a name.

    Raises:
        ValueError: there is none.
    """
    if name not in FORMATS:
        raise ValueError(f'no format "{name}"; choose one of {", ".join(FORMATS)}')
    return FORMATS[name]
