"""What the groups about devices that come back share: units, and alice's service manager."""
from devices import *

MANAGER, RUNTIME = "lab-alice.service", "/run/user/1000"


def write(path, text, user="root"):
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "w") as file:
        file.write(text)
    give(path, user)


def active(unit):
    return run("systemctl", "is-active", unit).stdout.strip()


def journal(unit):
    return must("journalctl", "--no-pager", "-o", "cat", "-u", unit)


def of_alice(*arguments):
    return run("env", f"XDG_RUNTIME_DIR={RUNTIME}", f"HOME={HOME}", "systemctl", "--user", "--no-pager", *arguments, user="alice")


def numbers():
    return sorted((device["id"], device["owner"]) for device in json.loads(must("ubd", "list", "--json")))


def ubd_of_alice(*arguments):
    return run("env", f"XDG_RUNTIME_DIR={RUNTIME}", f"HOME={HOME}", "ubd", *arguments, user="alice")


def write_manager():
    """As logind starts user@1000.service of a user who lingers. The guest has neither logind nor PAM."""
    write(f"/etc/systemd/system/{MANAGER}", f"""[Unit]
After=ubd-broker.socket ubd-broker.service
[Service]
Type=notify
User=alice
Environment=XDG_RUNTIME_DIR={RUNTIME} HOME={HOME}
ExecStartPre=+/bin/sh -c 'mkdir -p {RUNTIME} && chmod 700 {RUNTIME} && chown alice {RUNTIME}'
ExecStart=/usr/lib/systemd/systemd --user
KillMode=mixed
Delegate=yes
[Install]
WantedBy=multi-user.target
""")  # fmt: skip
