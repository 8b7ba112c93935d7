import Dialing
import Foundation
import Glibc
import SystemCalls
import Testing

@testable import NBDClient

@Suite("A server that ubd starts")
struct ServerCommandTests {
    @Test("gets a listening socket as systemd gives one, and nothing else of ours")
    func activation() throws {
        let attention = Attention()
        nonisolated(unsafe) var said: [UInt8] = []
        // ls takes the shell's place: a shell may hold the pipe of a pipeline for a moment.
        let script = "echo pid=$$ $LISTEN_PID fds=$LISTEN_FDS; exec ls -l /proc/self/fd"
        let server = try ServerCommand(["sh", "-c", script].map { Array($0.utf8) }, attention) { said += $0 }
        try server.start()
        try? attention.pause(Deadline(seconds: 20))
        let text = String(decoding: said, as: UTF8.self)
        let words = text.split(separator: "\n")
        let pids = try #require(words.first).split(whereSeparator: { " =".contains($0) })
        #expect(pids[1] == pids[2] && text.contains("fds=1"), "\(text)")
        #expect(text.contains("0 -> /dev/null") && text.contains("3 -> socket:"), "\(text)")
        let files = words.filter { $0.contains(" -> ") && !$0.contains(" -> /proc/") }
        #expect(files.count == 4, "\(text)")
        #expect(server.end == .exited(0))
    }

    @Test("that ends, or is not there, is why nobody answers")
    func ends() throws {
        for (words, message) in [
            (["sh", "-c", "exit 3"], "sh exited with status 3 before"),
            (["/no/such/program"], "/no/such/program can not be started (status 127)"),
            (["sh", "-c", "exit 126"], "sh can not be started (status 126)"),
        ] {
            let attention = Attention()
            let server = try ServerCommand(words.map { Array($0.utf8) }, attention) { _ in }
            try server.start()
            try? attention.pause(Deadline(seconds: 20))
            #expect(server.failure?.message.contains(message) == true, "\(server.failure?.message ?? "")")
        }
    }

    @Test("hears nothing of sockets that whoever runs ubd got from systemd")
    func foreignSockets() throws {
        let given = ["LISTEN_FDNAMES=a:b", "LISTEN_PIDFDID=1", "LISTEN_FDS=2", "LISTEN_PID=1"]
        let check = #"test "$LISTEN_FDS $LISTEN_PID" = "1 $$" && ! env | grep -q -e FDNAMES -e PIDFDID"#
        try perform("env", given + ServerCommand.shell + ["/", "sh", "-c", check])
    }

    @Test("starts where its command was typed, a second time, too")
    func folder() throws {
        let here = String(cString: getcwd(nil, 0))
        let check = #"test "$(pwd)" = /usr && test "$1" = x"#
        try perform("sh", Array(ServerCommand.shell.dropFirst()) + ["/usr", "sh", "-c", check, "sh", "x"])
        let attention = Attention()
        nonisolated(unsafe) var said: [UInt8] = []
        let server = try ServerCommand(["pwd"].map { Array($0.utf8) }, attention) { said += $0 }
        for _ in 0..<2 {
            try server.start()
            while server.end == nil { try? attention.pause(Deadline(milliseconds: 100)) }
        }
        #expect(String(decoding: said, as: UTF8.self) == "\(here)\n\(here)\n")
    }

    @Test("has its time to end, whatever else gives up meanwhile")
    func endsInPeace() throws {
        let mark = FileManager.default.temporaryDirectory.appendingPathComponent("ubd-\(UUID().uuidString)").path
        defer { unlink(mark) }
        let attention = Attention()
        let script = "trap 'sleep 1; echo written >\(mark); exit' TERM; echo ready; while :; do sleep 0.1; done"
        let server = try ServerCommand(["sh", "-c", script].map { Array($0.utf8) }, attention) { _ in }
        try server.start()
        // Until its trap is set.
        try attention.pause(Deadline(milliseconds: 500))
        // As the channel to `ubd`, once that is killed.
        let channel = try FileDescriptor.null()
        attention.add(channel.raw) { .giveUp }
        server.stop()
        #expect(server.end == .exited(0))
        #expect(access(mark, F_OK) == 0, "it was killed before it had written all")
    }

    @Test("that prints faster than that is passed on does not keep anything else from its turn")
    func prints() throws {
        let attention = Attention()
        nonisolated(unsafe) var reads = 0
        let words = ["head", "-c", "40960000", "/dev/zero"].map { Array($0.utf8) }
        let server = try ServerCommand(words, attention) { _ in
            reads += 1
            usleep(1000)
        }
        try server.start()
        try attention.pause(Deadline(milliseconds: 300))
        #expect(reads > 0 && reads < 5000, "\(reads) of 10000")
        server.stop()
    }

    /// Whoever has to wait for a zombie may be slow to do so.
    private static func hasEnded(_ pid: pid_t) -> Bool {
        guard let status = try? String(contentsOfFile: "/proc/\(pid)/status", encoding: .utf8) else { return true }
        return status.contains("State:\tZ")
    }

    @Test(
        "ends with all processes that it has started, a server in a script among them, and before it is started again")
    func group() throws {
        let place = FileManager.default.temporaryDirectory.appendingPathComponent("ubd-\(UUID().uuidString)").path
        defer { unlink(place) }
        func pids() -> [pid_t] {
            ((try? String(contentsOfFile: place, encoding: .utf8)) ?? "").split(separator: "\n").compactMap {
                pid_t($0)
            }
        }
        for script in ["sleep 1000 & echo $! >>\(place); wait", "sleep 1000 & echo $! >>\(place)"] {
            let attention = Attention()
            let server = try ServerCommand(["sh", "-c", script].map { Array($0.utf8) }, attention) { _ in }
            try server.start()
            while pids().isEmpty { try? attention.pause(Deadline(milliseconds: 50)) }
            // The second script has ended by itself then.
            while server.end == nil, script.hasSuffix(place) { try? attention.pause(Deadline(milliseconds: 50)) }
            try server.start()
            while pids().count < 2 { try? attention.pause(Deadline(milliseconds: 50)) }
            #expect(Self.hasEnded(pids()[0]), "the first one lives on beside the second")
            server.stop()
            #expect(Self.hasEnded(pids()[1]), "it outlives its device")
            unlink(place)
        }
    }

    @Test("has its socket where nobody else can put another one in its place")
    func place() throws {
        let folder = FileManager.default.temporaryDirectory.appendingPathComponent("ubd-\(UUID().uuidString)").path
        mkdir(folder, 0o700)
        defer { try? FileManager.default.removeItem(atPath: folder) }
        #expect(ServerFolder.safePlace(folder) == folder && ServerFolder.safePlace("/tmp") == "/tmp")
        #expect(ServerFolder.safePlace("tmp") == nil && ServerFolder.safePlace(folder + "/none") == nil)
        for (mode, isSafe) in [(0o755, true), (0o770, false), (0o777, false), (0o1777, true)] as [(mode_t, Bool)] {
            chmod(folder, mode)
            #expect((ServerFolder.safePlace(folder) != nil) == isSafe, "\(String(mode, radix: 8))")
        }
        mkdir(folder + "/inner", 0o700)
        chmod(folder, 0o777)
        #expect(ServerFolder.safePlace(folder + "/inner") == nil, "a folder above it can be renamed")
        chmod(folder, 0o700)
        // A link, which its owner may change later, is not in the name that is used.
        symlink("inner", folder + "/link")
        #expect(ServerFolder.safePlace(folder + "/link") == folder + "/inner")
        if geteuid() == 0 {
            chown(folder, 1000, 1000)
            #expect(ServerFolder.safePlace(folder) == nil && ServerFolder.safePlace(folder + "/inner") == nil)
        }
    }

    @Test("has its socket in the next place where the first has no room for it")
    func noRoom() throws {
        let folder = FileManager.default.temporaryDirectory.appendingPathComponent("ubd-\(UUID().uuidString)").path
        mkdir(folder, 0o700)
        defer { try? FileManager.default.removeItem(atPath: folder) }
        // The second has room for a folder, and not for a socket in it: as where a file system is full.
        let long = folder + "/" + String(repeating: "a", count: 100)
        mkdir(long, 0o700)
        let path = try ServerSocket(in: [folder + "/none", long, folder]).path
        #expect(String(decoding: path, as: UTF8.self).hasPrefix(folder + "/ubd-nbd."))
        #expect(try FileManager.default.contentsOfDirectory(atPath: long) == [])
    }

    @Test("that prints more than anybody reads does not hold up who passes it on")
    func unread() throws {
        var pipe = try makePipe()
        let line = [UInt8](repeating: UInt8(ascii: "x"), count: 10_000)
        for _ in 0..<100 { passOn(line[...], to: pipe.second.raw) }
        pipe.second = try FileDescriptor.null()
        var count = 0
        var bytes = [UInt8](repeating: 0, count: 4096)
        while case let some = read(pipe.first.raw, &bytes, bytes.count), some > 0 { count += some }
        #expect(count >= 40_000 && count <= 1 << 20, "\(count)")
        #expect(
            ServerCommand.remedy(EMFILE).contains("ulimit -n") && ServerCommand.remedy(EAGAIN).contains("ulimit -u"))
    }

    @Test("leaves no folder behind where no socket can be made")
    func noSocket() throws {
        let place = FileManager.default.temporaryDirectory.appendingPathComponent(String(repeating: "a", count: 120))
        try FileManager.default.createDirectory(at: place, withIntermediateDirectories: true)
        defer { try? FileManager.default.removeItem(at: place) }
        let words = ["true"].map { Array($0.utf8) }
        let error = #expect(throws: DialFailure.self) {
            _ = try ServerCommand(words, Attention(), in: place.path) { _ in }
        }
        #expect(error?.message.contains("no socket for the server can be made") == true)
        #expect(try FileManager.default.contentsOfDirectory(atPath: place.path) == [])
    }

    @Test(
        "must be one that a second client can reach",
        arguments: [
            ("qemu-nbd -f raw x", "ends when its first client leaves"), ("/usr/bin/qemu-nbd x", "ends when its first"),
            ("qemu-nbd -t --fork x", "into the background"), ("qemu-nbd -t -e 0 x", nil),
            ("qemu-nbd --persistent x", nil),
            ("nbdkit memory 1G", nil),
        ])
    func known(line: String, problem: String?) {
        let words = line.split(separator: " ").map(String.init)
        do {
            try ServerCommand.checkKnown(words)
            #expect(problem == nil)
        } catch {
            #expect(problem.map { error.message.contains($0) } == true)
        }
    }
}
