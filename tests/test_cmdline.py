"""The guest's command line: what is accepted, and what each mistake is told."""

from __future__ import annotations

import pytest

from guest.cmdline import BootOptions, CommandLineError, StartProgram, parse, tokenise


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", []),
        ("  a  b\tc\n", ["a", "b", "c"]),
        ("a 'b c' \"d e\"", ["a", "b c", "d e"]),
        ("'' x", ["", "x"]),
        ("name='v w'z", ["name=v wz"]),
        ("\"it's\"", ["it's"]),
    ],
)
def test_blanks_separate_and_quotes_join(text: str, words: list[str]) -> None:
    assert tokenise(text) == words


def test_no_option_means_no_network() -> None:
    options = parse("virtio_mmio.device=4K@0xd0000000:5 quiet")
    assert options == BootOptions(kernel=("virtio_mmio.device=4K@0xd0000000:5", "quiet"))
    assert options.networked is False


def test_static_address() -> None:
    options = parse("-ipaddr 10.0.0.2 -netmask 255.255.255.0 -gateway 10.0.0.1")
    assert (options.ipaddr, options.netmask, options.gateway) == ("10.0.0.2", "255.255.255.0", "10.0.0.1")
    assert options.networked is True


@pytest.mark.parametrize("text", ["-ipaddr 10.0.0.2", "-netmask 255.0.0.0", "-gateway 10.0.0.1", "-dhcp", "-ip6"])
def test_any_network_option_means_network(text: str) -> None:
    assert parse(text).networked is True


def test_the_last_of_repeated_options_counts() -> None:
    options = parse("-ipaddr 10.0.0.2 -dhcp -ipaddr 10.0.0.3 -dhcp")
    assert options.ipaddr == "10.0.0.3"
    assert options.dhcp is True


def test_dhcp_timeout_is_in_seconds() -> None:
    assert parse("-dhcp -dhcp-timeout 2.5").dhcp_timeout == 2_500_000
    assert parse("-dhcp").dhcp_timeout is None


def test_kernel_words_may_stand_between_options() -> None:
    options = parse("-ipaddr 10.0.0.2 console=hvc0 -dhcp")
    assert options.kernel == ("console=hvc0",)


def test_arguments_of_a_program_run_to_the_next_s() -> None:
    options = parse("-dhcp -s ping 10.0.0.1 -c 3 -s idle 5")
    assert options.start == (StartProgram("ping", ("10.0.0.1", "-c", "3")), StartProgram("idle", ("5",)))


def test_a_quoted_program_is_split_and_options_may_follow() -> None:
    options = parse("-s \"ping 10.0.0.1 -s 1400\" -ipaddr 10.0.0.2 -s 'echo \"a b\"'")
    assert options.start == (StartProgram("ping", ("10.0.0.1", "-s", "1400")), StartProgram("echo", ("a b",)))
    assert options.ipaddr == "10.0.0.2"


@pytest.mark.parametrize(
    ("text", "named", "says"),
    [
        ("-frob", "-frob", "unknown option"),
        ("-ipaddr", "-ipaddr", "needs a value"),
        ("-ipaddr -dhcp", "-ipaddr", "needs a value"),
        ("-ipaddr 10.0.0.2 10.0.0.3", "-ipaddr", "10.0.0.3"),
        ("-ipaddr 10.0.0", "-ipaddr", "not an IPv4 address"),
        ("-ipaddr 10.0.0.256", "-ipaddr", "not an IPv4 address"),
        ("-ipaddr fe80::1", "-ipaddr", "not an IPv4 address"),
        ("-ipaddr 224.0.0.1", "-ipaddr", "not the address of one host"),
        ("-gateway 255.255.255.255", "-gateway", "not the address of one host"),
        ("-gateway x", "-gateway", "not an IPv4 address"),
        ("-netmask 255.0.255.0", "-netmask", "ones behind zeros"),
        ("-netmask 24", "-netmask", "not an IPv4 address"),
        ("-dhcp yes", "-dhcp", "takes no value"),
        ("-ip6 on", "-ip6", "takes no value"),
        ("-dhcp-timeout 5", "-dhcp-timeout", "without -dhcp"),
        ("-dhcp -dhcp-timeout soon", "-dhcp-timeout", "number of seconds"),
        ("-dhcp -dhcp-timeout 0", "-dhcp-timeout", "above 0"),
        ("-dhcp -dhcp-timeout nan", "-dhcp-timeout", "number of seconds"),
        ("-dhcp -dhcp-timeout inf", "-dhcp-timeout", "number of seconds"),
        ("-s", "-s", "needs a program"),
        ("-s -dhcp", "-s", "needs a program"),
        ("-s ''", "-s", "needs a program"),
        ("-s ping 10.0.0.1 -ipaddr 10.0.0.2", "-ipaddr", "put it before -s"),
        ("-dhcp 'open", "'", "never closed"),
        ("--", "--", "unknown option"),
    ],
)
def test_a_mistake_is_one_line_that_names_the_option(text: str, named: str, says: str) -> None:
    with pytest.raises(CommandLineError) as raised:
        parse(text)
    message = str(raised.value)
    assert named in message
    assert says in message
    assert "\n" not in message


@pytest.mark.parametrize("option", ["-ipaddr", "-netmask", "-gateway"])
def test_a_malformed_address_is_answered_with_an_example(option: str) -> None:
    with pytest.raises(CommandLineError, match=rf"{option} \d+\.\d+\.\d+\.\d+$"):
        parse(f"{option} 1.2.3")


@pytest.mark.parametrize("mask", ["0.0.0.0", "128.0.0.0", "255.255.255.255", "255.255.254.0"])
def test_netmasks_of_any_length_are_accepted(mask: str) -> None:
    assert parse(f"-netmask {mask}").netmask == mask
