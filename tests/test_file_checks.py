"""Files that somebody has written on another computer: every fault is named, nothing raises, nothing is quoted."""

from __future__ import annotations

import base64
import shutil
import subprocess
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from services import file_checks
from services.file_checks import authority, authorized_keys, normalised, pair, pem, text_fault, wpa_supplicant

OPENSSL, KEYGEN = shutil.which("openssl"), shutil.which("ssh-keygen")


def field(data: bytes) -> bytes:
    return len(data).to_bytes(4, "big") + data


def key(kind: str = "ssh-ed25519", *fields: bytes) -> str:
    blob = b"".join(map(field, (kind.encode(), *(fields or (bytes(range(32)),)))))
    return f"{kind} {base64.b64encode(blob).decode()}"


GOOD = key()


# --- text ---------------------------------------------------------------------------------------------------------------
def test_what_an_editor_on_windows_writes() -> None:
    assert normalised(b"\xef\xbb\xbfone\r\ntwo") == b"one\ntwo\n"
    assert normalised(b"") == b""
    assert "UTF-16" in text_fault("text".encode("utf-16"))
    assert "NUL" in text_fault(b"a\0b")
    assert "empty" in text_fault(b" \n\n")
    assert text_fault(b"text") == ""


# --- ssh ----------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("line", [
    GOOD, f"{GOOD} harbour master@pc", f"no-pty,No-X11-Forwarding,restrict {GOOD} x", f'command="echo \\"a b\\"" {GOOD}', f"{GOOD}  ",
    f'  no-pty,permitopen="10.0.0.1:80" {GOOD}', key("ssh-rsa", b"\1\0\1", b"\0" + b"\xff" * 256), key("ssh-rsa", b"\1\0\1", b"\xff" * 1030), key("ecdsa-sha2-nistp256", b"nistp256", bytes(range(65))),
    key("sk-ssh-ed25519@openssh.com", bytes(range(32)), b"ssh:"), f"{GOOD} J\xf6rg",
])  # fmt: skip
def test_good_keys(line: str) -> None:
    assert authorized_keys(f"# who\n\n{line}\n{GOOD}\n".encode()) == ""
    assert authorized_keys(line.encode("latin-1")) == ""


@pytest.mark.parametrize(("text", "fault"), [
    ("", "there is no key in it"),
    ("# nobody\n", "there is no key in it"),
    (f"{GOOD}\nhello\n", "line 2: no type of key that ssh would take"),
    ("ssh-ed25519", "line 1: the key itself is missing"),
    ("ssh-ed25519 AAAA!", "line 1: the key is not base64"),
    (GOOD[:-9], "line 1: the key is"),
    (GOOD[:40] + "\n" + GOOD[40:], "line 1: the key is"),
    (GOOD.replace("ssh-ed25519", "ssh-rsa", 1), "line 1: the key inside is not of type ssh-rsa"),
    (key("ssh-ed25519", b"x" * 32, b"more"), "line 1: this is no key of type ssh-ed25519"),
    (key("ssh-rsa", b"\1\0\1"), "line 1: this is no key of type ssh-rsa"),
    (key("ssh-dss", b"p", b"q"), "line 1: no type of key"),
    (f'from="10.0.0.*" {GOOD}', "line 1: dropbear does not know the option 'from'"),
    (f'environment="A=b" {GOOD}', "line 1: dropbear does not know the option 'environment'"),
    (f"cert-authority {GOOD}", "line 1: dropbear does not know the option 'cert-authority'"),
    (f"no_pty {GOOD}", "line 1: it begins with no option"),
    (f"no-pty=yes {GOOD}", "line 1: dropbear does not know the option 'no-pty'"),
    (f"command=ls {GOOD}", "line 1: what command is set to stands in quotes"),
    (f'command="a",command="b" {GOOD}', "line 1: command= stands there twice"),
    (f'permitopen="host" {GOOD}', "line 1: permitopen is set to a host and a port"),
    (f"no-pty,,restrict {GOOD}", "line 1: its options are not separated by single commas"),
    (f"|1|abc=|def= {GOOD}", "line 1: it begins with no option"),
    (f"board.local,10.0.0.5 {GOOD}", "line 1: it begins with no option"),
    (f"  {GOOD}", "line 1: it begins with a space"),
    (GOOD.replace(" ", "\t"), "line 1: between the type and the key stands one space"),
    (GOOD.replace(" ", "  "), "line 1: between the type and the key stands one space"),
    (f"{GOOD}\tme@pc", "line 1: behind the key stands a space"),
    (key("ssh-rsa", b"\1\0\1", b"\xff" * 2048), "line 1: an RSA key of 16384 bits: dropbear takes 1024 to 8240"),
    (key("ssh-rsa", b"\1\0\1", b"\xff" * 64), "line 1: an RSA key of 512 bits"),
    (key("ssh-ed25519", bytes(31)), "line 1: this is no key of type ssh-ed25519"),
    (key("ecdsa-sha2-nistp256", b"nistp384", bytes(65)), "line 1: this is no key of type ecdsa"),
    (key("ecdsa-sha2-nistp384", b"nistp384", bytes(65)), "line 1: this is no key of type ecdsa"),
    (f'from="10.0.0.* {GOOD}', "line 1: a quote is not closed"),
    (f"no-pty,{GOOD}", "line 1: no type of key"),
    (f"{GOOD} {'x' * 5000}", "line 1: it has more than 4200 characters"),
    ("-----BEGIN OPENSSH PRIVATE KEY-----\nc2VjcmV0\n", "line 1: no type of key"),
    ("---- BEGIN SSH2 PUBLIC KEY ----", "line 1: no type of key"),
])  # fmt: skip
def test_bad_keys(text: str, fault: str) -> None:
    assert authorized_keys(text.encode()).startswith(fault), authorized_keys(text.encode())


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        (key() + "\r" + key(), "a control character"),
        (key().replace(" ", "\v", 1), "a control character"),
        ("\f" + key(), "a control character"),
        (key().replace(" ", "\u00a0", 1), "no type of key"),
        (key().replace(" ", "\u2003", 1), "no type of key"),
        (key() + "====", "behind the key stands more"),
        (f"{key()} me@host {key()}", "a second key stands on the same line"),
    ],
)
def test_what_looks_like_a_key_to_a_person_alone_is_refused(text: str, fault: str) -> None:
    """Blanks of Unicode, lines of old Macintoshes: dropbear reads no key there, or the first one alone."""
    assert fault in authorized_keys(f"{text}\n".encode())


def test_a_comment_may_hold_what_it_likes_at_its_end() -> None:
    assert authorized_keys(f"{key()} bücher \u00a0 # x\r\n{key()} caf\xe9\n".encode("latin-1", "replace")) == ""


@given(st.integers(0, len(GOOD) - 1), st.characters(max_codepoint=126, min_codepoint=33))
def test_a_changed_key_is_refused_or_still_one(at: int, char: str) -> None:
    """Of one changed character only what lies in the key's own 32 bytes can pass unseen."""
    changed = GOOD[:at] + char + GOOD[at + 1 :]
    kind, head = "ssh-ed25519 ", GOOD.index("AAAA") + 25  # type, its length, and the length of what follows
    if at < head and changed != GOOD and at != len(kind) - 1:
        assert authorized_keys(changed.encode())


@given(st.integers(1, 44))
def test_a_key_that_is_cut_off_is_refused(length: int) -> None:
    assert authorized_keys(GOOD[:-length].encode())


@pytest.mark.skipif(KEYGEN is None, reason="no ssh-keygen here")
@pytest.mark.parametrize("kind", ["ed25519", "rsa", "ecdsa"])
def test_keys_that_ssh_keygen_makes(tmp_path: Path, kind: str) -> None:
    subprocess.run([str(KEYGEN), "-q", "-t", kind, "-N", "", "-f", tmp_path / "key"], check=True)
    assert authorized_keys((tmp_path / "key.pub").read_bytes()) == ""
    assert authorized_keys((tmp_path / "key").read_bytes()), "the private one"


# --- Wi-Fi ----------------------------------------------------------------------------------------------------------------
NETWORK = 'country=DE\n# home\nnetwork={\n    ssid="a}b{"\n    psk="long enough"\n    # }\n}\n'


@pytest.mark.parametrize("text", [
    NETWORK, NETWORK * 3, "", "network={ # at home\nssid=616263 # here\nkey_mgmt=NONE\n} # end\n", 'cred={\nrealm="x"\n}\n',
    'blob-base64-ca={\nQUJD\nREVG\n}\n', 'network={\npsk=' + "0" * 64 + "\n}\n", 'network={\nssid="a"b"\n}\n',
])  # fmt: skip
def test_good_networks(text: str) -> None:
    assert wpa_supplicant(text.encode()) == ""


def test_a_passphrase_is_as_long_as_its_bytes() -> None:
    block = 'network={\n ssid="a"\n psk="%s"\n}\n'
    assert wpa_supplicant((block % "äöüß").encode()) == ""
    assert "psk" in wpa_supplicant((block % ("ä" * 32)).encode())


@pytest.mark.parametrize(("text", "fault"), [
    ("network = {\nssid=616263\n}\n", "line 1: write network={ without blanks: wpa_supplicant takes nothing else"),
    (NETWORK[:-2], "line 3: the block is not closed"),
    (NETWORK + "}\n", "line 8: there is no block to be closed"),
    ("network={\nnetwork={\n}\n", "line 2: the block of line 1 is not closed"),
    (NETWORK.replace('"long enough"', '"short"'), "line 5: psk: a passphrase has 8 to 63 characters"),
    (NETWORK.replace('"long enough"', '"' + "x" * 64 + '"'), "line 5: psk: a passphrase has 8 to 63 characters"),
    (NETWORK.replace('"long enough"', '"long enough'), "line 5: psk: a quote is not closed"),
    ("network = {\nssid=616263\nkey_mgmt=NONE\n}\n", "line 1: write network={ without blanks: wpa_supplicant takes nothing else"),
    ('network={\npsk="long enough # x\n}\n', "line 2: psk: a quote is not closed"),
    ("hello\n", 'line 1: it is no "name=value"'),
    ("network=\n{\n}\n", 'line 2: it is no "name=value"'),
])  # fmt: skip
def test_bad_networks(text: str, fault: str) -> None:
    assert wpa_supplicant(text.encode()) == fault


# --- certificates ---------------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if OPENSSL is None:
        pytest.skip("no openssl here")
    folder = tmp_path_factory.mktemp("pem")
    for name in ("board", "other"):
        subprocess.run([str(OPENSSL), "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes",
                        "-subj", f"/CN={name}", "-keyout", folder / f"{name}.key", "-out", folder / f"{name}.pem"],
                       check=True, capture_output=True)  # fmt: skip
    subprocess.run([str(OPENSSL), "ec", "-in", folder / "board.key", "-aes256", "-passout", "pass:aye", "-out",
                    folder / "locked.key"], check=True, capture_output=True)  # fmt: skip
    return folder


def test_a_key_belongs_to_its_certificate(certificates: Path) -> None:
    data = {path.name: path.read_bytes() for path in certificates.iterdir()}
    assert pair(data["board.pem"], data["board.key"]) == ""
    assert authority(data["board.pem"]) == ""
    assert authority(b"subject: CN=x\n" + data["board.pem"] + data["other.pem"]) == "", "as openssl prints them"
    assert "do not belong together" in pair(data["board.pem"], data["other.key"])
    assert "the key: there is no PRIVATE KEY in it" in pair(data["board.pem"], data["board.pem"])
    assert "the certificate: there is no CERTIFICATE" in pair(data["board.key"], data["board.key"])
    assert "encrypted" in pair(data["board.pem"], data["locked.key"])
    assert "there is no CERTIFICATE" in authority(data["board.key"])
    windows = normalised(data["board.pem"].replace(b"\n", b"\r\n"))
    assert pair(windows, data["board.key"]) == ""


BLOCK = "-----BEGIN CERTIFICATE-----\nQUJD\n-----END CERTIFICATE-----\n"


@pytest.mark.parametrize(("text", "fault"), [
    ("", "there is no CERTIFICATE in it"),
    (BLOCK.replace("END", "End"), "a block is not whole"),
    (BLOCK[:40], "a block is not whole"),
    (BLOCK + "-----END CERTIFICATE-----\n", "a block is not whole"),
    (BLOCK.replace("END CERTIFICATE", "END X"), "BEGIN CERTIFICATE ends with END X"),
    (BLOCK.replace("QUJD", "Q!JD"), "CERTIFICATE is not base64"),
    (BLOCK.replace("QUJD", ""), "CERTIFICATE is empty"),
    (BLOCK.replace("CERTIFICATE", "PUBLIC KEY"), "there is no CERTIFICATE in it"),
])  # fmt: skip
def test_bad_blocks(text: str, fault: str) -> None:
    assert pem(text.encode(), "CERTIFICATE").startswith(fault)
    assert authority(text.encode())


def test_what_is_no_certificate_inside(certificates: Path) -> None:
    assert authority(BLOCK.encode()).startswith("it is no certificate")
    assert pair(BLOCK.encode(), (certificates / "board.key").read_bytes())


# --- all of them ----------------------------------------------------------------------------------------------------------
SECRET = "correct-horse"


@given(st.binary(max_size=300) | st.text(alphabet='ab={}"\n# \\network-BEGIN', max_size=200).map(str.encode))
@example(b"-----BEGIN CERTIFICATE-----\n\xff\xfe\n-----END CERTIFICATE-----\n")
@example(b'ssh-rsa "')
@example(b"=")
def test_no_check_raises_whatever_comes(data: bytes) -> None:
    for check in (authorized_keys, wpa_supplicant, authority, text_fault):
        assert isinstance(check(normalised(data)), str)
    assert pair(data, data), "nobody writes a certificate by chance"


@pytest.mark.parametrize(
    "text", [f'network={{\npsk="{SECRET}\n}}\n', f"{SECRET}\n", f"ssh-rsa {SECRET}\n", f"network={{\n{SECRET}"]
)
def test_no_fault_tells_what_is_in_the_file(text: str) -> None:
    for check in (authorized_keys, wpa_supplicant, authority):
        assert check(text.encode())
        assert SECRET not in check(text.encode())
    assert file_checks.KEY_TYPES
