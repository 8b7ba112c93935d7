import BrokerInterface

/// The checks of the user and the installation.
enum UserChecks {
    static func all(_ host: any Machine, broker: Result<InfoReply, CommandFailure>) -> [Check] {
        [
            self.broker(broker), access(broker), group(host, isPermitted: (try? broker.get())?.permitted == true),
            files(host), memory(host), udev(host),
        ] + names(host)
    }

    private static func broker(_ answer: Result<InfoReply, CommandFailure>) -> Check {
        switch answer {
        case .success(let info): .ok("broker", "version \(info.version) answers at \(info.socket)")
        case .failure(let failure):
            .missing("broker", failure.message, remedy: failure.remedy.replacing(", or see 'ubd doctor'", with: ""))
        }
    }

    /// The broker's own answer about the caller is better than a guess from groups.
    private static func access(_ answer: Result<InfoReply, CommandFailure>) -> Check {
        guard case .success(let info) = answer else {
            return .warning("access", "not known while the broker does not answer", remedy: "fix the broker first")
        }
        if info.permitted {
            return .ok("access", "you may add devices" + (info.rule.map { " (rule: \($0))" } ?? ""))
        }
        return .missing(
            "access",
            "the access policy does not let you add devices" + (info.rule.map { " (rule: \($0))" } ?? ""),
            remedy: "ask the administrator for group ubd or a rule in /etc/ubd/access.policy")
    }

    /// The installed access policy allows group ubd; users whom another rule allows need no group.
    private static func group(_ host: any Machine, isPermitted: Bool) -> Check {
        let isMember = host.group(named: "ubd").map { host.groups.contains($0.gid) } ?? false
        if host.uid == 0, !isMember { return .ok("group", "root needs no group") }
        if isPermitted, !isMember { return .ok("group", "you need no group: the access policy lets you in as you are") }
        guard let group = host.group(named: "ubd") else {
            return .missing(
                "group", "there is no group ubd", remedy: "run 'systemd-sysusers' or 'groupadd --system ubd' as root")
        }
        if isMember { return .ok("group", "you are in group ubd") }
        if group.members.contains(host.userName) {
            return .missing(
                "group", "you were added to group ubd, but this login is older",
                remedy: "log in again, or run 'newgrp ubd'")
        }
        return .missing(
            "group", "you are not in group ubd",
            remedy: "run 'usermod -aG ubd \(host.userName)' as root, then log in again")
    }

    private static func files(_ host: any Machine) -> Check {
        let limit = host.openFileLimit
        if limit >= 64 {
            return .ok("files", "\(limit > 1 << 32 ? "any number of" : String(limit)) files may be open at once")
        }
        return .warning("files", "only \(limit) files may be open at once", remedy: "run 'ulimit -n 1024'")
    }

    /// One device with the defaults: 1 queue × 128 requests × 512 KiB.
    private static let typicalBytes: UInt64 = 64 << 20

    private static func memory(_ host: any Machine) -> Check {
        let line = host.text(of: "/proc/meminfo")?.split(whereSeparator: \.isNewline).first {
            $0.hasPrefix("MemAvailable:")
        }
        guard let line, let kibibytes = line.split(separator: " ").dropFirst().first.flatMap({ UInt64($0) }) else {
            return .warning("memory", "/proc/meminfo does not say how much is available", remedy: "see 'free -h'")
        }
        let bytes = kibibytes * 1024
        let typical = ByteSize.text(typicalBytes)
        if bytes >= 2 * typicalBytes {
            return .ok("memory", "\(ByteSize.text(bytes)) available; a device takes \(typical) by default")
        }
        return .warning(
            "memory", "only \(ByteSize.text(bytes)) available, and a device takes \(typical) by default",
            remedy: "use fewer --queues, a smaller --depth or --max-io-size")
    }

    private static func udev(_ host: any Machine) -> Check {
        guard host.kind(of: "/run/udev/control", followsLinks: true) != nil else {
            return .ok("udev", "udev does not run; the broker sets owners and links")
        }
        let directories = ["/etc", "/run", "/usr/local/lib", "/usr/lib", "/lib"]
        let rule = directories.map { "\($0)/udev/rules.d/59-ubd.rules" }.first {
            host.kind(of: $0, followsLinks: true) == .file
        }
        if let rule { return .ok("udev", "\(rule) is installed") }
        return .missing(
            "udev", "udev runs without ubd's rule 59-ubd.rules, and may take devices away from their owners",
            remedy: "install it ('make install'), then run 'udevadm control --reload' as root")
    }

    /// Names of our links that another program took: user-mode Linux calls its disks /dev/ubda and so on.
    private static func names(_ host: any Machine) -> [Check] {
        let taken = host.entries(of: "/dev").filter { name in
            guard name.hasPrefix("ubdb"), name.dropFirst(4).allSatisfy({ $0.isASCII && $0.isNumber }) else {
                return false
            }
            if case .link(let text) = host.kind(of: "/dev/\(name)", followsLinks: false) {
                return !text.hasSuffix("ublkb" + name.dropFirst(4))
            }
            return true
        }
        guard !taken.isEmpty else { return [.ok("names", "nothing else has names like /dev/ubdb0")] }
        return [
            .warning(
                "names", "something else has /dev/\(taken.joined(separator: ", /dev/"))",
                remedy: "use /dev/ublkbN for such a device, as 'ubd list' shows it")
        ]
    }
}
