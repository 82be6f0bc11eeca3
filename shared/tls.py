"""TLS between an edge and a node: both show a certificate, and each checks that of the other against an authority of
their owner's own. What is wrong is said in sentences for a person."""

from __future__ import annotations

import os
import ssl
import time
from pathlib import Path

from shared.settings_sections import TlsSettings

# OpenSSL's verify codes (openssl-verification-options(1)) that have a cause of their own.
_NOT_YET_VALID, _EXPIRED, _WRONG_PURPOSE = 9, 10, 26

# OpenSSL's reasons for which a handshake fails, when this side refuses the other …
_REFUSED = {
    "PEER_DID_NOT_RETURN_A_CERTIFICATE": "it showed no certificate",
    "UNSUPPORTED_PROTOCOL": "it speaks only versions of TLS before 1.3",
    "UNSUPPORTED_SSL_VERSION": "it speaks only versions of TLS before 1.3",
    "NO_SHARED_CIPHER": "it knows none of the ciphers of TLS 1.3",
    "HTTP_REQUEST": "it speaks plain HTTP, not TLS",
    "HTTPS_PROXY_REQUEST": "it speaks plain HTTP, not TLS",
    "WRONG_VERSION_NUMBER": "it does not speak TLS",
    "UNKNOWN_PROTOCOL": "it does not speak TLS",
    "RECORD_LAYER_FAILURE": "it does not speak TLS",
    "PACKET_LENGTH_TOO_LONG": "it does not speak TLS",
    "BAD_RECORD_TYPE": "it does not speak TLS",
    "UNEXPECTED_MESSAGE": "it does not speak TLS",
}
# … and when the other side refuses this one and says so, in the names of its alerts (RFC 8446 §6.2).
_ALERTS = {
    "UNKNOWN_CA": "it does not know the authority of our certificate",
    "CERTIFICATE_EXPIRED": "it says that our certificate has expired",
    "CERTIFICATE_REQUIRED": "it asks for a certificate, and we showed none",
    "CERTIFICATE_REVOKED": "it says that our certificate was revoked",
    "CERTIFICATE_UNKNOWN": "it does not accept our certificate",
    "BAD_CERTIFICATE": "it does not accept our certificate",
    "UNSUPPORTED_CERTIFICATE": "our certificate was not made for this use",
    "PROTOCOL_VERSION": "it speaks only versions of TLS before 1.3",
}


class TlsError(Exception):
    """The files of ``[node.tls]`` or of an upstream's ``tls`` do not work; the text says which, why and what to do."""


def server_context(settings: TlsSettings) -> ssl.SSLContext:
    """For a node: shows its certificate and asks every caller for theirs. Raises TlsError."""
    context = _context(settings, server_side=True)
    context.num_tickets = 0  # a resumed session would not show its certificate again
    return context


def client_context(settings: TlsSettings) -> ssl.SSLContext:
    """For an edge: shows its certificate and checks that the node's is of the authority. The name in it does not
    count: the authority is the owner's own, and nodes are called by address. Raises TlsError."""
    return _context(settings, server_side=False)


def valid_until(settings: TlsSettings, *, server_side: bool) -> float:
    """Unix seconds at which the certificate or its authority ends, whichever is first. Raises TlsError where they do
    not work now."""
    context = _context(settings, server_side=server_side)
    assert settings.certificate is not None and settings.key is not None
    return min(max(_ends(context)), _check(settings.certificate, settings.key, server_side))


def refusal(error: BaseException) -> str:
    """Why a handshake failed with ``error``, as half a sentence about the other side ("it")."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return {
            _EXPIRED: "its certificate has expired",
            _NOT_YET_VALID: "its certificate is not valid yet; compare the clocks of both machines",
            _WRONG_PURPOSE: "its certificate was not made for this use (extendedKeyUsage)",
        }.get(error.verify_code, f"its certificate is not of our authority ({error.verify_message})")
    if isinstance(error, ssl.SSLError) and error.reason:
        if said := _REFUSED.get(error.reason):
            return said
        _, alert, name = error.reason.partition("_ALERT_")
        if alert:
            return _ALERTS.get(name, f"it ended the handshake ({name.lower().replace('_', ' ')})")
        return _words(error)
    if isinstance(error, ConnectionAbortedError | TimeoutError):
        return "it did not finish the handshake in time"
    return "it closed the connection during the handshake; its own log may say why"


def _context(settings: TlsSettings, *, server_side: bool) -> ssl.SSLContext:
    certificate, key, authority = settings.certificate, settings.key, settings.authority
    if certificate is None or key is None or authority is None:
        raise TlsError("Certificate, key and authority are all needed: both sides show a certificate.")
    for path in (certificate, key, authority):
        _read(path)
    context = _bare(server_side)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.verify_mode = ssl.CERT_REQUIRED
    _trust(context, authority)
    _load(context, certificate, key)
    _check(certificate, key, server_side)
    return context


def _bare(server_side: bool) -> ssl.SSLContext:
    """Believes everybody, until it is told otherwise."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER if server_side else ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def _read(path: Path) -> None:
    try:
        path.open("rb").close()
    except OSError as error:
        raise TlsError(f"{path} cannot be read: {os.strerror(error.errno or 0)}.") from None


def _trust(context: ssl.SSLContext, authority: Path) -> None:
    try:
        context.load_verify_locations(authority)
    except ssl.SSLError:
        raise TlsError(f"{authority} holds no certificate in PEM: it must be the authority's own.") from None
    ends = _ends(context)
    if not ends:
        raise TlsError(f"{authority} is not the certificate of an authority (basicConstraints CA:TRUE).")
    if max(ends) < time.time():
        raise TlsError(f"The authority in {authority} has expired, and with it all that it issued. Make a new one.")


def _ends(context: ssl.SSLContext) -> list[float]:
    """Unix seconds at which each authority that ``context`` believes ends."""
    return [ssl.cert_time_to_seconds(str(found["notAfter"])) for found in context.get_ca_certs()]


def _load(context: ssl.SSLContext, certificate: Path, key: Path) -> None:
    def password() -> str:
        raise TlsError(f"{key} is locked with a password. Write it without one, readable by this user only.")

    try:
        context.load_cert_chain(certificate, key, password)
    except ssl.SSLError as error:
        if error.reason == "KEY_VALUES_MISMATCH":
            raise TlsError(f"{key} is not the key of the certificate in {certificate}.") from None
        why = f" ({_words(error)})" if error.reason else ""
        raise TlsError(
            f"{certificate} or {key} cannot be used{why}: the one must hold a certificate, the other its private key, "
            "both in PEM."
        ) from None


def _check(certificate: Path, key: Path, server_side: bool) -> float:
    """Show the certificate to ourselves, in memory: the other side will refuse it for the same reasons, and its log is
    on another machine. Returns the Unix seconds at which it ends. Raises TlsError."""
    ours, theirs = _bare(server_side), _bare(not server_side)
    for context in (ours, theirs):
        context.load_cert_chain(certificate, key)
    theirs.verify_mode = ssl.CERT_REQUIRED
    theirs.load_verify_locations(certificate)
    theirs.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN  # of whatever authority
    to_us, to_them = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = [
        ours.wrap_bio(to_us, to_them, server_side=server_side),
        theirs.wrap_bio(to_them, to_us, server_side=not server_side),
    ]
    try:
        for end in ends * 3:  # two round trips at most
            try:
                end.do_handshake()
            except ssl.SSLWantReadError:
                continue
    except ssl.SSLError as error:
        use = "serverAuth" if server_side else "clientAuth"
        why = {
            _EXPIRED: "has expired. Put a new one there",
            _NOT_YET_VALID: "is not valid yet. Compare it with the clock",
            _WRONG_PURPOSE: f"was not made for {use}. Make one that is",
        }.get(getattr(error, "verify_code", 0), f"does not work ({_words(error)})")
        show = f"openssl x509 -in {certificate} -noout -dates -purpose"
        raise TlsError(f"The certificate in {certificate} {why}; `{show}` shows it.") from None
    return ssl.cert_time_to_seconds(str((ends[1].getpeercert() or {})["notAfter"]))


def _words(error: ssl.SSLError) -> str:
    return getattr(error, "verify_message", "") or (error.reason or str(error)).lower().replace("_", " ")
