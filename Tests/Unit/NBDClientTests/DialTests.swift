import Dialing
import Foundation
import Glibc
import SystemCalls
import Testing

@testable import NBDClient

@Suite("Dialling real servers")
struct DialTests {
    private static func option(_ file: Int32, _ level: Int32, _ name: Int32) -> Int32 {
        var value: Int32 = -1
        var size = socklen_t(4)
        getsockopt(file, level, name, &value, &size)
        return value
    }

    /// SO_PASSRIGHTS, of Linux 6.16.
    private static let passRights: Int32 = 83
    /// A new socket of a kernel that has it takes files.
    private static let isPassRightsKnown: Bool = {
        let file = socket(AF_UNIX, Int32(SOCK_STREAM.rawValue), 0)
        defer { close(file) }
        return option(file, SOL_SOCKET, passRights) == 1
    }()

    private static func check(_ set: borrowing ConnectionSet, isNetwork: Bool) {
        for file in set.numbers {
            #expect(readSector(file, at: 0) == [UInt8](repeating: 0, count: 512))
            // A ring waits by itself only on a file that blocks.
            #expect(fcntl(file, F_GETFL) & O_NONBLOCK == 0)
            #expect(fcntl(file, F_GETFD) & FD_CLOEXEC != 0)
            // SO_LOCK_FILTER.
            #expect(option(file, SOL_SOCKET, 44) == 1)
            if !isNetwork { #expect(option(file, SOL_SOCKET, passRights) == (isPassRightsKnown ? 0 : -1)) }
            guard isNetwork else { continue }
            #expect(option(file, Int32(IPPROTO_TCP), TCP_NODELAY) == 1)
            #expect(option(file, SOL_SOCKET, SO_KEEPALIVE) == 1)
            #expect(option(file, Int32(IPPROTO_TCP), TCP_USER_TIMEOUT) == 30_000)
        }
    }

    @Test("gives connections of nbdkit over TCP that serve, with their options set, as many as are wanted")
    func nbdkit() throws {
        let server = try RealServer("nbdkit", ["-f", "-p", "%P", "-i", "127.0.0.1", "memory", "10M"])
        let address = try server.address("nbd://127.0.0.1:%P/")
        let set = try ConnectionSet.dial(Dialer(address: address), count: 3)
        #expect(set.numbers.count == 3)
        #expect(set.facts.size == 10 << 20 && set.facts.takesMultipleConnections && set.facts.cipher == "")
        #expect(set.notices == [])
        Self.check(set, isNetwork: true)
    }

    @Test("gives a single connection of a server that has no more, and says so")
    func single() throws {
        let server = try RealServer("qemu-nbd", ["-t", "-x", "disk one", "-f", "raw", "-k", "%S", "%D/raw"]) {
            folder, _ in
            try Data(count: 1 << 20).write(to: folder.appendingPathComponent("raw"))
        }
        let address = try server.address("nbd+unix:///disk%20one?socket=%S")
        let set = try ConnectionSet.dial(Dialer(address: address), count: 4)
        #expect(set.numbers.count == 1)
        #expect(set.facts.hasBlocks && set.facts.maximumBlock == 32 << 20)
        #expect(set.notices.map(\.code) == ["connections"])
        Self.check(set, isNetwork: false)
    }

    /// A connection over a Unix socket: the end of `ubd-nbd`, and the server's.
    private static func connected(
        _ body: (_ ours: borrowing StreamSocket, _ server: borrowing FileDescriptor) throws -> Void
    ) throws {
        let folder = FileManager.default.temporaryDirectory.appendingPathComponent(UUID().uuidString)
        try FileManager.default.createDirectory(at: folder, withIntermediateDirectories: true)
        defer { try? FileManager.default.removeItem(at: folder) }
        let listener = try SystemCalls.listen(at: folder.path + "/socket", backlog: 4)
        let address = try NBDAddress("nbd+unix:///?socket=\(folder.path)/socket")
        let ours = try StreamSocket(address, Deadline(seconds: 5), Attention())
        guard let server = try SystemCalls.accept(listener.raw) else {
            Issue.record("nobody has connected")
            return
        }
        try body(ours, server)
    }

    @Test("has no file sent to it over a Unix socket, where the kernel can forbid that, and bytes all the same")
    func noFiles() throws {
        try Self.connected { (ours, server) in
            var refusal: Int32 = 0
            do throws(SystemError) { _ = try send(server.raw, [0], files: [0]) } catch { refusal = error.errno }
            #expect(refusal == (Self.isPassRightsKnown ? EPERM : 0))
            if refusal == 0 { _ = try ours.receive(1, Deadline(seconds: 5)) }
            #expect(try send(server.raw, [1, 2, 3]) == 3)
            #expect(try ours.receive(8, Deadline(seconds: 5)) == [1, 2, 3])
        }
    }

    @Test("waits no longer than its deadline for a server that goes on sending what brings nobody forward")
    func deadline() throws {
        try Self.connected { (ours, server) in
            #expect(try send(server.raw, [1]) == 1)
            try ours.wait(for: POLLIN, Deadline(seconds: 5))
            let late = #expect(throws: SystemError.self) { try ours.wait(for: POLLIN, Deadline(milliseconds: 0)) }
            #expect(late?.errno == ETIMEDOUT)
        }
    }

    @Test("tells what exports qemu-nbd and nbd-server have when the wanted one is not there")
    func unknownExport() throws {
        let qemu = try RealServer("qemu-nbd", ["-t", "-x", "disk", "-f", "raw", "-k", "%S", "%D/raw"]) { folder, _ in
            try Data(count: 1 << 20).write(to: folder.appendingPathComponent("raw"))
        }
        let address = try qemu.address("nbd+unix:///nothing?socket=%S")
        let error = #expect(throws: DialFailure.self) { try Dialer(address: address).ask() }
        #expect(error?.kind == .usage)
        #expect(error?.message.contains("does not have export 'nothing'") == true, "\(error?.message ?? "")")
        #expect(error?.message.contains("it has 'disk'") == true, "\(error?.message ?? "")")
    }

    @Test("agrees with nbd-server")
    func nbdServer() throws {
        let server = try RealServer("nbd-server", ["-C", "%D/config", "-p", "%D/pid"]) { folder, port in
            try Data(count: 1 << 20).write(to: folder.appendingPathComponent("raw"))
            let config = """
                [generic]
                listenaddr = 127.0.0.1
                port = \(port)
                allowlist = true
                [one]
                exportname = \(folder.path)/raw
                [two]
                exportname = \(folder.path)/raw
                readonly = true

                """
            try config.write(toFile: folder.path + "/config", atomically: true, encoding: .utf8)
        }
        let set = try ConnectionSet.dial(Dialer(address: server.address("nbd://127.0.0.1:%P/one")), count: 1)
        #expect(set.facts.size == 1 << 20 && !set.facts.isReadOnly)
        Self.check(set, isNetwork: true)
        #expect(try Dialer(address: server.address("nbd://127.0.0.1:%P/two")).ask().isReadOnly)
        let address = try server.address("nbd://127.0.0.1:%P/three")
        let error = #expect(throws: DialFailure.self) { try Dialer(address: address).ask() }
        #expect(error?.message.contains("'one', 'two'") == true, "\(error?.message ?? "")")
    }

    @Test("says where nobody listens, what never answers, and what is no NBD server")
    func nobody() throws {
        let server = try RealServer("sh", ["-c", "sleep 60"])
        let refused = #expect(throws: DialFailure.self) {
            try Dialer(address: NBDAddress(server.filled("nbd://127.0.0.1:%P"))).dial().takeFile()
        }
        #expect(refused?.kind == .unreachable && refused?.message.contains("Connection refused") == true)
        let nowhere = #expect(throws: DialFailure.self) {
            try Dialer(address: NBDAddress("nbd+unix:///?socket=/nowhere")).ask()
        }
        #expect(nowhere?.message == "no server at /nowhere: No such file or directory")
        let name = #expect(throws: DialFailure.self) {
            try Dialer(address: NBDAddress("nbd://no-such-host.invalid")).ask()
        }
        #expect(name?.message.hasPrefix("the host 'no-such-host.invalid' can not be found: ") == true)

        let listener = try SystemCalls.listen(at: server.socket, backlog: 4)
        let address = try NBDAddress(server.filled("nbd+unix:///?socket=%S"))
        let silent = #expect(throws: DialFailure.self) { try Dialer(address: address, seconds: 1).ask() }
        #expect(silent?.message.hasSuffix("does not answer in time") == true, "\(silent?.message ?? "")")
        _ = try SystemCalls.accept(listener.raw)
        let number = listener.raw
        Thread {
            for _ in 0..<100 {
                guard let one = try? SystemCalls.accept(number) else {
                    usleep(50_000)
                    continue
                }
                _ = try? one.writeAll(Array("SSH-2.0-OpenSSH_9.2\r\n".utf8))
                return
            }
        }.start()
        let other = #expect(throws: DialFailure.self) { try Dialer(address: address, seconds: 5).ask() }
        #expect(
            other?.kind == .unsuitable && other?.message.contains("its first bytes are 53 53 48") == true,
            "\(other?.message ?? "")")
    }

    @Test("notices an export that is another one than before")
    func changed() throws {
        let server = try RealServer("nbdkit", ["-f", "-U", "%S", "memory", "10M"])
        let dialer = Dialer(address: try server.address("nbd+unix:///?socket=%S"))
        var before = try dialer.ask()
        before.size *= 2
        let error = #expect(throws: DialFailure.self) {
            _ = try ConnectionSet.dial(dialer, count: 1, before: before).numbers
        }
        #expect(error?.message.hasSuffix("its size was 20971520 bytes and is 10485760") == true)
    }

    @Test("knows whose process serves a connection that does not leave this host")
    func serverUser() throws {
        for (arguments, uri) in [
            (["-U", "%S"], "nbd+unix:///?socket=%S"), (["-p", "%P", "-i", "127.0.0.1"], "nbd://127.0.0.1:%P/"),
            // Its socket is one of IPv6, where there is IPv6.
            (["-p", "%P"], "nbd://127.0.0.1:%P/"),
        ] {
            let server = try RealServer("nbdkit", ["-f"] + arguments + ["memory", "1M"])
            let facts = try Dialer(address: server.address(uri)).ask()
            #expect(facts.serverUser == getuid(), "\(uri)")
        }
        let table = """
              sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
               0: 0100007F:2A39 00000000:0000 0A 00000000:00000000 00:00000000 00000000  1001        0 1 1 0 100 0 0 10 0
               1: 0100007F:D431 0100007F:2A39 01 00000000:00000000 00:00000000 00000000  1002        0 2 1 0 20 4 30 10 -1
               2: 0100007F:2A39 0100007F:D431 01 00000000:00000000 00:00000000 00000000  1003        0 3 1 0 20 4 30 10 -1
            """
        let bytes = Array(table.utf8)
        #expect(ServerUser.search(bytes, local: ["0100007F:2A39"], remote: ["0100007F:D431"]) == 1003)
        #expect(ServerUser.search(bytes, local: ["0100007F:2A39"], remote: ["0100007F:D432"]) == nil)
    }

    @Test("waits for room in a server's queue of connections, which others have filled")
    func fullQueue() throws {
        let server = try RealServer("sh", ["-c", "sleep 60"])
        let listener = try SystemCalls.listen(at: server.socket, backlog: 0)
        let address = try NBDAddress(server.filled("nbd+unix:///?socket=%S"))
        let first = try StreamSocket(address, Deadline(seconds: 5), Attention())
        let number = listener.raw
        Thread {
            usleep(500_000)
            _ = try? SystemCalls.accept(number)
        }.start()
        let began = monotonicNanoseconds()
        let second = try StreamSocket(address, Deadline(seconds: 20), Attention())
        #expect(monotonicNanoseconds() - began > 300_000_000, "there was room")
        #expect(first.file.raw != second.file.raw)
    }

    @Test("is told where the broker is by a whole path, since it leaves the folder in which it was started")
    func brokersSocket() throws {
        func broker(_ path: String) throws -> String? {
            try Arguments(["--uri", "nbd://h/", "--broker", path].map { Array($0.utf8) }).broker
        }
        #expect(try broker("/run/b") == "/run/b")
        #expect(try broker("x/b") == FileManager.default.currentDirectoryPath + "/x/b")
        let error = #expect(throws: DialFailure.self) { try broker(String(repeating: "a", count: 107)) }
        #expect(error?.kind == .usage && error?.message.contains("more than 107 bytes") == true)
    }
}
