"""Every command's name, module, section and sentence, so that the list of commands and the start of one import no other. Pure.

A new command gets its line here; a test compares the lines with the modules and with each command's own help.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from schema.frozen import frozen


@frozen
class Entry:
    """One command or group of the first level. `module` is in daemon.cli and has `register`; `summary` begins its help."""

    module: str
    section: str
    summary: str


COMMANDS: Final[Mapping[str, Entry]] = MappingProxyType(
    {
        "init": Entry("init", "Begin", "Write a first clawbus.toml with an agent `echo`, and make the data folder."),
        "serve": Entry("serve", "Begin", "Run the daemon in the foreground until Ctrl-C or SIGTERM."),
        "send": Entry("send", "Begin", "Send a message to an agent's session; with --wait, print its answer."),
        "chat": Entry(
            "chat", "Begin", "Talk with an agent: a line is a message, answers are printed as they come; Ctrl-D ends."
        ),
        "mailbox": Entry(
            "mailbox",
            "Begin",
            "Read a mailbox: the answers to what was sent with `send`, including those that no command waited for.",
        ),
        "question": Entry("question", "Begin", "What agents ask people: list the open questions, answer one."),
        "schedule": Entry(
            "schedule",
            "Begin",
            "Messages that are sent at given times: add, list, show, run, pause, resume or cancel a schedule.",
        ),
        "status": Entry(
            "status",
            "See",
            "Show how the bus is doing: the daemon, sessions by state, queues, dead letters, what needs attention.",
        ),
        "doctor": Entry(
            "doctor", "See", "Find everything that is wrong: the host, stuck sessions, runs whose sources disagree."
        ),
        "top": Entry(
            "top",
            "See",
            "Show the daemon, the queues and the busiest sessions with what each works on, every second until q or Ctrl-C.",
        ),
        "session": Entry(
            "session", "See", "List and show sessions; stop, kill, quarantine, release, reset or delete one."
        ),
        "run": Entry("run", "See", "What agents work on and worked on: list runs, or show the whole life of one."),
        "agent": Entry("agent", "See", "The agents of the configuration: list them, show one, or refill a budget."),
        "channel": Entry("channel", "See", "The channels of the configuration."),
        "egress": Entry("egress", "See", "What agents may reach through the gate, and what they used."),
        "logs": Entry(
            "logs",
            "See",
            "Show what the daemon logged, from its log file or the journal; with --follow also what it logs from now on.",
        ),
        "watch": Entry("watch", "See", "Follow the daemon's events as they happen, until Ctrl-C or the daemon's end."),
        "route": Entry("route", "People", "Routes: which place talks to which agent."),
        "user": Entry("user", "People", "People who may talk to agents, and what they may do."),
        "pairing": Entry("pairing", "People", "Strangers who asked to talk to an agent."),
        "message": Entry("message", "Repair", "List messages, show one's life, cancel it, or have it tried again."),
        "delivery": Entry(
            "delivery", "Repair", "Answers under way: list those in retry and why, retry one now, or give it up."
        ),
        "dead": Entry(
            "dead", "Repair", "Dead letters: answers that could not be delivered and messages that were given up."
        ),
        "sweep": Entry("sweep", "Repair", "End runs that are listed as under way and are not."),
        "config": Entry("config_check", "Host", "Check the configuration."),
        "reload": Entry(
            "reload", "Host", "Make the daemon read its configuration again: agents, routes and log level."
        ),
        "image": Entry("image", "Host", "Build the agents' image, or see whether it is the right one."),
        "install": Entry("install", "Host", "Show which installation a data folder is, or make it a new one."),
        "backup": Entry("backup", "Host", "Back a data folder up, while the daemon runs or while it is down."),
        "restore": Entry("backup", "Host", "Make the data folder from a backup, with the daemon down."),
        "release": Entry("release", "Releases", "Make, list and remove releases."),
        "deploy": Entry("deploy", "Releases", "Put another release in the place of the one that serves."),
        "worker": Entry(
            "worker", "Releases", "The daemons that are registered, what each owns, and whether it does it."
        ),
        "source": Entry(
            "source",
            "Releases",
            "Compare installed files, manifests, images and the running daemon, and name each difference.",
        ),
        "version": Entry("version", "More", "Print which clawbus this is, on which Python, with which schema."),
        "help": Entry(
            "show_help",
            "More",
            "Show what a command is for, its options and an example; or what a code, state or log event means.",
        ),
        "completion": Entry(
            "completion",
            "More",
            "Print the script that makes a shell complete commands, options, agents, sessions and ids.",
        ),
        "inngest": Entry(
            "inngest", "More", "An Inngest server's main.db: what its runs really are, and the sweep of the stale ones."
        ),
    }
)
