"""Whether a file that somebody has written on another computer is what its name says: keys, Wi-Fi networks, certificates.

Each check answers with a sentence, empty where nothing is wrong, and quotes nothing of the file: it may be a secret, and
what is wrong with a file is shown to everybody.
"""

from __future__ import annotations

import binascii
import os
import re

from onboard.wpa_control import config_lines

LONGEST_KEY = 4200  # characters of a line, which dropbear reads (its MAX_AUTHKEYS_LINE)
# Types of keys that dropbear and OpenSSH take, and of how many fields one consists (RFC 4253, 5656, 8709, OpenSSH's
# PROTOCOL.u2f).
KEY_TYPES = {
    "ssh-ed25519": 2, "ssh-rsa": 3, "ecdsa-sha2-nistp256": 3, "ecdsa-sha2-nistp384": 3, "ecdsa-sha2-nistp521": 3,
    "sk-ssh-ed25519@openssh.com": 3, "sk-ecdsa-sha2-nistp256@openssh.com": 4,
}  # fmt: skip
OPTIONS = {  # of a key, and whether it is set to something
    "no-port-forwarding": False, "no-agent-forwarding": False, "no-x11-forwarding": False, "no-pty": False, "restrict": False,
    "no-touch-required": False, "verify-required": False, "command": True, "permitopen": True,
}  # fmt: skip
RSA_BITS = range(1024, 8241)  # dropbear's MIN_RSA_KEYLEN, and BUF_MAX_MPINT in its bignum.c
POINT = {"nistp256": 65, "nistp384": 97, "nistp521": 133}  # bytes of an uncompressed point (SEC 1, 2.3.3)
WORD = re.compile(r'(?:[^\s"]|"(?:[^"\\]|\\.)*")+', re.ASCII)  # what stands between spaces, but for those in quotes
CONTROL = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")
PEM = re.compile(r"^-----BEGIN ([A-Z0-9 ]+)-----[ \t]*\n(.*?)^-----END ([A-Z0-9 ]+)-----[ \t]*$", re.M | re.S)


def normalised(data: bytes) -> bytes:
    """As Unix has text: an editor on Windows writes other ends of lines, and a mark before the first one."""
    text = data.removeprefix(b"\xef\xbb\xbf").replace(b"\r\n", b"\n")
    return text if text.endswith(b"\n") or not text else text + b"\n"


def text_fault(data: bytes) -> str:
    """What no file of ours may be."""
    if data[:2] in (b"\xff\xfe", b"\xfe\xff"):
        return "it is UTF-16; save it as UTF-8"
    if b"\0" in data:
        return "it holds NUL bytes: it is no text"
    return "" if data.strip() else "it is empty"


def _text(data: bytes) -> str:
    return data.decode("utf-8", "surrogateescape")


# --- ssh ----------------------------------------------------------------------------------------------------------------
def authorized_keys(data: bytes) -> str:
    """dropbear's reading of `man 8 sshd`, AUTHORIZED_KEYS FILE FORMAT: one bad line, and who counts on it is locked out.

    dropbear has no program that checks a file, and is stricter than OpenSSH (checkpubkey_line, svr-authpubkey.c): one space
    between type and key, few options, RSA keys of limited size. What passes here, OpenSSH takes too.
    """
    keys = 0
    for number, line in enumerate(_text(data).split("\n"), 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        if fault := key_fault(line):
            return f"line {number}: {fault}"
        keys += 1
    return "" if keys else "there is no key in it"


def key_fault(line: str) -> str:
    """What is wrong with the line of one key: `[options] type base64 [comment]`."""
    if len(line.encode("utf-8", "surrogateescape")) > LONGEST_KEY:
        return f"it has more than {LONGEST_KEY} characters, which dropbear does not read"
    if line[0] in " \t" and line.split()[0] in KEY_TYPES:
        return "it begins with a space, which dropbear takes for the end of options"
    if CONTROL.search(line.rstrip("\r")):
        return "it holds a control character, perhaps the end of a line as old Macintoshes had it: what follows is not read"
    line = line.lstrip(" \t")
    found = WORD.match(line)
    first = found[0] if found else ""
    rest = line[len(first) :]
    if rest[:1].strip() or not first:
        return "a quote is not closed"
    if first not in KEY_TYPES:
        options, rest = first, rest[1:]
        first = rest.partition(" ")[0]
        if first.split("\t")[0] not in KEY_TYPES:
            return "no type of key that ssh would take here, such as ssh-ed25519 or ssh-rsa"
        if fault := option_fault(options):
            return fault
        rest = rest[len(first) :]
    if "\t" in first or rest[:1] == "\t" or rest[:2] in ("  ", " \t"):
        return "between the type and the key stands one space, and nothing else"
    word = rest[1:].partition(" ")[0]
    if not word:
        return "the key itself is missing"
    if "\t" in word:
        return "behind the key stands a space, not a tab"
    if KEY_TYPES.keys() & {*rest[1:].split()[1:]}:
        return "a second key stands on the same line, where it is only a comment"
    return blob_fault(first, word)


def blob_fault(first: str, word: str) -> str:
    """What is wrong with the base64 of a key of this type."""
    try:
        blob = binascii.a2b_base64(word, strict_mode=True)
    except (binascii.Error, ValueError):
        return "the key is not base64: perhaps it was broken into lines, or cut off"
    if binascii.b2a_base64(blob, newline=False) != word.encode():
        return "behind the key stands more than belongs to it"
    fields = key_fields(blob)
    if fields is None or not fields:
        return "the key is cut off"
    if fields[0] != first.encode():
        return f"the key inside is not of type {first}"
    if len(fields) != KEY_TYPES[first] or not all(fields):
        return f"this is no key of type {first}"
    return field_fault(first, fields)


def option_fault(options: str) -> str:
    """Options that dropbear knows; any other one makes it refuse the key (svr_add_pubkey_options)."""
    names = re.findall(r'(?:[^",]|"(?:[^"\\]|\\.)*")+', options)
    if not names or ",".join(names) != options:
        return "its options are not separated by single commas"
    for option in names:
        name, _, value = option.partition("=")
        if name.lower() not in OPTIONS or OPTIONS[name.lower()] != bool(value):
            return (
                f"dropbear does not know the option {name!r}"
                if re.fullmatch(r"[a-zA-Z-]{1,30}", name)
                else "it begins with no option"
            )
        if value and not re.fullmatch(r'"(?:[^"\\]|\\.)*"', value):
            return f"what {name} is set to stands in quotes"
        if name.lower() == "permitopen" and not re.fullmatch(r'"[^":]+:\d{1,5}"', value):
            return "permitopen is set to a host and a port"
    return "command= stands there twice" if sum(one.lower().startswith("command=") for one in names) > 1 else ""


def field_fault(kind: str, fields: list[bytes]) -> str:
    """What is inside the key, where its length says whether it can be used."""
    if kind == "ssh-rsa":
        bits = int.from_bytes(fields[2], "big").bit_length()
        return "" if bits in RSA_BITS else f"an RSA key of {bits} bits: dropbear takes {RSA_BITS[0]} to {RSA_BITS[-1]}"
    if "ed25519" in kind:
        return "" if len(fields[1]) == 32 else f"this is no key of type {kind}"
    curve = "nistp256" if kind.startswith("sk-") else kind.rpartition("-")[2]
    return "" if fields[1] == curve.encode() and len(fields[2]) == POINT[curve] else f"this is no key of type {kind}"


def key_fields(blob: bytes) -> list[bytes] | None:
    """The fields of a public key, each with its length before it (RFC 4251, string); None where they do not fit."""
    fields, at = [], 0
    while at < len(blob):
        end = at + 4 + int.from_bytes(blob[at : at + 4], "big")
        if end > len(blob) or at + 4 > len(blob):
            return None
        fields.append(blob[at + 4 : end])
        at = end
    return fields


# --- Wi-Fi --------------------------------------------------------------------------------------------------------------
def wpa_supplicant(data: bytes) -> str:
    """wpa_supplicant.conf(5): what costs all networks when it is wrong. wpa_supplicant itself has the last word."""
    opened = 0
    for number, line in config_lines(_text(data)):
        if opened and line == "}":
            opened = 0
        elif re.fullmatch(r"(network|cred)=\{|blob-base64-[^={}]+=\{", line):
            if opened:
                return f"line {number}: the block of line {opened} is not closed"
            opened = number
        elif re.fullmatch(r"(network|cred)\s*=\s*\{", line):
            return f"line {number}: write {line.partition('=')[0].strip()}={{ without blanks: wpa_supplicant takes nothing else"
        elif line == "}":
            return f"line {number}: there is no block to be closed"
        elif fault := _field_fault(line, inside=bool(opened)):
            return f"line {number}: {fault}"
    return f"line {opened}: the block is not closed" if opened else ""


def _field_fault(line: str, *, inside: bool) -> str:
    name, equals, value = line.partition("=")
    if not equals or not name.strip():
        blob = inside and re.fullmatch(r"[A-Za-z0-9+/=]+", line)  # the lines of a blob have no name
        return "" if blob else 'it is no "name=value"'
    value = value.strip()
    if value.startswith('"') and (len(value) < 2 or '"' not in value[1:]):
        return f"{name.strip()}: a quote is not closed"
    quoted = value.rpartition('"')[0][1:].encode("utf-8", "surrogateescape")
    if name.strip() == "psk" and value.startswith('"') and not 8 <= len(quoted) <= 63:
        return "psk: a passphrase has 8 to 63 characters"
    return ""


# --- certificates -------------------------------------------------------------------------------------------------------
def pem(data: bytes, wanted: str) -> str:
    """RFC 7468: whole blocks, at least one of the wanted kind: "CERTIFICATE" or "PRIVATE KEY"."""
    blocks = PEM.findall(_text(data))
    if len(blocks) != data.count(b"-----BEGIN ") or len(blocks) != data.count(b"-----END "):
        return "a block is not whole: each needs its line BEGIN and its line END"
    for begin, body, end in blocks:
        if begin != end:
            return f"BEGIN {begin} ends with END {end}"
        if "ENCRYPTED" in begin or "ENCRYPTED" in body:
            return "the key is encrypted, and nobody is there to type its passphrase"
        try:
            if not binascii.a2b_base64("".join(body.split()), strict_mode=True):
                return f"{begin} is empty"
        except (binascii.Error, ValueError):
            return f"{begin} is not base64"
    return "" if any(begin.endswith(wanted) for begin, _, _ in blocks) else f"there is no {wanted} in it"


def authority(data: bytes) -> str:
    """Certificates that others are checked by."""
    if fault := pem(data, "CERTIFICATE"):
        return fault
    try:
        import ssl
    except ImportError:
        return ""  # who has no TLS has no use for it either
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(cadata=_text(b"".join(_blocks(data))))
    except (ssl.SSLError, ValueError) as error:
        return f"it is no certificate: {getattr(error, 'reason', None) or error}"
    return ""


def _blocks(data: bytes) -> list[bytes]:
    """The blocks alone: what a tool has printed between them is not for every parser."""
    return [f"{match[0]}\n".encode() for match in PEM.finditer(_text(data)) if match[1] == "CERTIFICATE"]


def pair(certificate: bytes, key: bytes) -> str:
    """A certificate and the private key that belongs to it."""
    for name, data, wanted in (("the certificate", certificate, "CERTIFICATE"), ("the key", key, "PRIVATE KEY")):
        if fault := pem(data, wanted):
            return f"{name}: {fault}"
    try:
        import ssl
    except ImportError:
        return ""
    files = [os.memfd_create("pem") for _ in range(2)]
    try:
        for fd, data in zip(files, (certificate, key), strict=True):
            os.pwrite(fd, data, 0)
        paths = [f"/proc/self/fd/{fd}" for fd in files]
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_cert_chain(
            paths[0], paths[1], password=""
        )  # or it would ask on a terminal
    except (ssl.SSLError, OSError, ValueError) as error:
        return f"certificate and key do not belong together: {getattr(error, 'reason', None) or error}"
    finally:
        for fd in files:
            os.close(fd)
    return ""
