import Foundation
import Glibc
import Testing

@testable import ubd_broker

@Suite("What the broker keeps")
struct ConfinementTests {
    @Test("of the environment: what systemd tells its services, and nothing that steers a program or a library")
    func environment() {
        let given = [
            "HOME=/root", "LD_PRELOAD=/tmp/evil.so", "LISTEN_FDS=1",
            "SWIFT_BACKTRACE=enable=yes,swift-backtrace=/tmp/x",
            "GLIBC_TUNABLES=glibc.malloc.check=3", "NOTIFY_SOCKET=@/org/x", "PATH=/tmp", "no equals sign", "=",
        ]
        let clean = CleanEnvironment.cleaned(given)
        #expect(
            clean == [
                "PATH=/usr/sbin:/usr/bin:/sbin:/bin", "SWIFT_BACKTRACE=enable=no", "LISTEN_FDS=1",
                "NOTIFY_SOCKET=@/org/x",
            ])
        #expect(CleanEnvironment.cleaned(clean) == clean, "the second time there is nothing left to do")
    }

    @Test("of root's capabilities: those that the unit leaves it, and those for what systemd and udev do there")
    func capabilities() throws {
        let unit = URL(filePath: #filePath).appending(path: "../../../../policy/systemd/ubd-broker.service")
        let line = try String(contentsOf: unit.standardizedFileURL, encoding: .utf8).split(separator: "\n")
            .first { $0.hasPrefix("CapabilityBoundingSet=") }
        let names = try #require(line).dropFirst("CapabilityBoundingSet=".count).split(separator: " ").map(String.init)
        let others = ["CAP_CHOWN", "CAP_FOWNER", "CAP_SYSLOG"]
        #expect(names.count == 7)
        #expect(Set(Capabilities.kept.map { "CAP_" + $0.name }) == Set(names + others))
        #expect(Capabilities.mask == 0x4_0128_01E9)
    }

    @Test(
        "a dump of a target's policies has its filters and each mode's rings; an unknown one has none",
        .enabled(if: getuid() == 0, "policies must be root's, and lie where root alone can write"))
    func dump() throws {
        // A checkout may lie anywhere; /run is root's.
        let checkout = URL(filePath: #filePath).appending(path: "../../../../policy").standardizedFileURL
        let folder = "/run/ubd-policies-\(getpid())"
        try FileManager.default.copyItem(at: checkout, to: URL(filePath: folder))
        defer { try? FileManager.default.removeItem(atPath: folder) }
        let text = try #require(try PolicyDump.text(of: "loop", folder: folder))
        for part in [
            "broker.policy", "worker-setup.policy", "target-loop.policy", "mode batch-zero-copy", "op READ_FIXED",
        ] {
            #expect(text.contains(part), "\(part)")
        }
        #expect(try #require(try PolicyDump.text(of: "broker", folder: folder)).contains("execveat"))
        #expect(try PolicyDump.text(of: "iscsi", folder: folder) == nil)
    }
}
