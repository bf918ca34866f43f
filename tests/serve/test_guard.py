"""Who may connect."""

import pytest

from moshi_mlx.serve.guard import Guard, Refused, is_loopback

GUARD = Guard("127.0.0.1", None, ("https://talk.example.org", "http://other.example:8080"))


@pytest.mark.parametrize("host", ["localhost", "localhost:8998", "127.0.0.1:1", "[::1]:8998", "192.168.1.7:8998",
                                  "talk.example.org", "TALK.example.org:443", "other.example"])  # fmt: skip
def test_hosts_that_are_served(host):
    GUARD.check_host({"Host": host})


@pytest.mark.parametrize(
    "host", ["evil.example", "localhost.evil.example", "127.0.0.1.nip.io:8998", "", "talk.example.org.evil"]
)
def test_dns_rebinding(host):
    with pytest.raises(Refused, match="is not served here") as refused:
        GUARD.check_host({"Host": host})
    assert refused.value.status == 403


@pytest.mark.parametrize("headers", [
    {"Host": "localhost:8998"},
    {"Host": "localhost:8998", "Origin": "http://localhost:8998"},
    {"Host": "localhost:8998", "Origin": "https://talk.example.org"},
    {"Host": "192.168.1.7:8998", "Origin": "http://192.168.1.7:8998"},
])  # fmt: skip
def test_origins_that_may(headers):
    GUARD.check_origin(headers)


@pytest.mark.parametrize("origin", ["https://evil.example", "null", "http://localhost:3000", "https://talk.example.org:444",
                                    "", "http://talk.example.org"])  # fmt: skip
def test_pages_of_others_may_not(origin):
    with pytest.raises(Refused, match="may not connect"):
        GUARD.check_origin({"Host": "localhost:8998", "Origin": origin})


@pytest.mark.parametrize(("headers", "query"), [
    ({"Authorization": "Bearer sesame"}, {}),
    ({"Authorization": "bearer  sesame"}, {}),
    ({"kyutai-api-key": "sesame"}, {}),
    ({}, {"auth_id": "sesame"}),
    ({}, {"worker_auth_id": "sesame"}),
    ({}, {"token": "sesame"}),
])  # fmt: skip
def test_tokens_where_clients_put_them(headers, query):
    Guard("0.0.0.0", "sesame").check_token(headers, query)


@pytest.mark.parametrize(("headers", "query"), [
    ({}, {}), ({"Authorization": "Bearer "}, {}), ({"Authorization": "Basic sesame"}, {}), ({}, {"auth_id": "sesam"}),
    ({"kyutai-api-key": "sesame2"}, {}), ({}, {"auth_id": "ſesame"}), ({"Authorization": "sesame"}, {}),
])  # fmt: skip
def test_wrong_tokens(headers, query):
    with pytest.raises(Refused) as refused:
        Guard("0.0.0.0", "sesame").check_token(headers, query)
    assert refused.value.status == 401
    assert "sesam" not in str(refused.value)


def test_tokens_are_compared_in_constant_time(monkeypatch):
    compared = []
    monkeypatch.setattr("hmac.compare_digest", lambda a, b: compared.append((a, b)) or a == b)
    Guard("0.0.0.0", "sesame").check_token({"Authorization": "Bearer sesame"}, {})
    assert (b"sesame", b"sesame") in compared


INSIDE, OUTSIDE = ("127.0.0.1", "127.3.2.1", "::1", "localhost"), ("0.0.0.0", "::", "192.168.1.1", "mac.local")


@pytest.mark.parametrize(("host", "loopback"), [(host, host in INSIDE) for host in (*INSIDE, *OUTSIDE)])
def test_loopback(host, loopback):
    assert is_loopback(host) == loopback
