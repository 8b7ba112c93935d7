import BrokerInterface
import Glibc
import SystemCalls

/// The broker's files on the host, as far as a user can see them.
enum Installation {
    /// The PREFIXes of `make install` that are searched.
    private static let prefixes = ["/usr", "/usr/local"]

    /// The program that dials: installed beside the worker, or where both were built.
    static var dialer: String { helper("ubd-nbd") }

    /// The program that opens LUKS volumes, found the same way.
    static var unlocker: String { helper("ubd-crypt") }

    private static func helper(_ name: String) -> String {
        guard let own = linkTarget("/proc/self/exe"), let slash = own.lastIndex(of: "/") else {
            return prefixes[0] + "/libexec/ubd/" + name
        }
        let folder = String(own[..<slash])
        let installed = folder + "/../libexec/ubd/" + name
        return access(installed, X_OK) == 0 ? installed : folder + "/" + name
    }

    private static func prefix(_ host: any Machine) -> String? {
        prefixes.first { host.kind(of: $0 + "/libexec/ubd/ubd-broker", followsLinks: true) == .file }
    }

    /// systemd's own test whether it runs the host (sd_booted(3)).
    private static func runsSystemd(_ host: any Machine) -> Bool {
        host.kind(of: "/run/systemd/system", followsLinks: true) == .directory
    }

    /// Where the broker's log is.
    static func log(_ host: any Machine) -> String {
        runsSystemd(host) ? "its log ('journalctl -u ubd-broker')" : "its log (what the broker prints)"
    }

    /// The command with which root starts a broker.
    static func startCommand(_ host: any Machine) -> String {
        runsSystemd(host)
            ? "systemctl start ubd-broker.socket" : (prefix(host) ?? "/usr") + "/libexec/ubd/ubd-broker"
    }

    /// The reasons why a broker could not start; none when a broker answers, since it has found everything.
    static func checks(_ host: any Machine, broker: Result<InfoReply, CommandFailure>) -> [Check] {
        guard case .failure = broker else { return [] }
        guard let prefix = prefix(host) else {
            return [
                .missing(
                    "install", "there is no /usr/libexec/ubd/ubd-broker", remedy: "run 'make install' as root")
            ]
        }
        let files = ["\(prefix)/libexec/ubd/ubd-worker", "\(prefix)/share/ubd/policy/seccomp/worker-loop.policy"]
        for path in files + ["/etc/ubd/access.policy"] where host.kind(of: path, followsLinks: true) != .file {
            return [
                .missing(
                    "install", "there is no \(path), and no broker starts without it",
                    remedy: "run 'make install' as root")
            ]
        }
        guard host.group(named: "ubd-worker") != nil else {
            return [
                .missing(
                    "install", "there is no group ubd-worker, and no broker starts without it",
                    remedy: "run 'systemd-sysusers' or 'groupadd --system ubd-worker' as root")
            ]
        }
        return [.ok("install", "the broker's files are in \(prefix)")]
    }
}
