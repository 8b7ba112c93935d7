import BrokerInterface
import CLauncher
import Glibc
import SystemCalls
import Testing

@testable import ubd_broker

@Suite("The broker's command line")
struct ConfigurationTests {
    @Test("values are taken with a blank or an equals sign")
    func takesValues() throws {
        let (command, configuration) = try Configuration.parse(["--run-dir", "/x", "--uid-count=5", "--foreground"])
        #expect(command == .run)
        #expect(configuration.runFolder == "/x")
        #expect(configuration.uidCount == 5)
        #expect(configuration.socketPath == "/x/io.ubd.Broker")
    }

    @Test("relative paths are completed, since the broker leaves the folder in which it was started")
    func completesPaths() throws {
        var configuration = try Configuration.parse(["--run-dir", "run", "--worker", "./w", "--access", "/a"]).1
        try configuration.makeAbsolute { "/start" }
        #expect(configuration.runFolder == "/start/run")
        #expect(configuration.workerProgram == "/start/./w")
        #expect(configuration.accessPolicy == "/a")
        var gone = try Configuration.parse(["--policy-dir", "p"]).1
        let error = #expect(throws: Configuration.UsageError.self) { try gone.makeAbsolute { nil } }
        #expect(error?.message == "'p': the working folder is gone; give an absolute path")
    }

    @Test(
        "what makes no sense is refused with its name",
        arguments: [
            (["--uid-count", "0"], "--uid-count"), (["--frobnicate"], "--frobnicate"), (["--worker"], "--worker"),
            (["--check-config=yes"], "--check-config"), (["--oom-score=2000"], "--oom-score"), (["x"], "'x'"),
            (["--uid-base=4294967294", "--uid-count=2"], "4294967294"), (["--uid-base=4294967000"], "4294967000"),
            (["--run-dir="], "--run-dir can not be ''"), (["--run-dir", ""], "--run-dir can not be ''"),
            (["--access="], "--access can not be ''"), (["--control-group", ""], "--control-group can not be ''"),
            (["--uid-base=4294967295"], "--uid-base"), (["--uid-base=18446744073709551616"], "--uid-base"),
        ])
    func refuses(_ arguments: [String], _ name: String) {
        let error = #expect(throws: Configuration.UsageError.self) { try Configuration.parse(arguments) }
        #expect(error?.message.contains(name) == true)
    }
}

@Suite("Verifying a worker")
struct VerificationTests {
    private static let good = """
        Name:\tubd-worker
        State:\tT (stopped)
        Uid:\t7000\t7000\t7000\t7000
        Gid:\t800\t800\t800\t800
        Groups:\t 
        CapInh:\t0000000000000000
        CapPrm:\t0000000000000000
        CapEff:\t0000000000000000
        CapBnd:\t0000000000000000
        CapAmb:\t0000000000000000
        NoNewPrivs:\t1
        Seccomp:\t2
        Seccomp_filters:\t3

        """
    private let verification = SandboxVerification(
        uid: 7000, gid: 800, seccompFilters: 3, mountCount: MountCount())

    @Test("a confined task passes")
    func passes() {
        #expect(verification.problem(in: ProcessStatus(parsing: Array(Self.good.utf8))) == nil)
    }

    @Test("a worker is known by its ids, whatever else it has")
    func knowsWorkers() {
        let status = ProcessStatus(parsing: Array(Self.good.utf8))
        #expect(status.isWorker(uid: 7000, gid: 800))
        #expect(!status.isWorker(uid: 7001, gid: 800) && !status.isWorker(uid: 7000, gid: 801))
    }

    @Test(
        "one thing amiss is enough",
        arguments: [
            ("7000\t7000\t7000\t7000", "7000\t0\t7000\t7000"), ("800\t800\t800\t800", "800\t800\t0\t800"),
            ("Groups:\t ", "Groups:\t27 "), ("CapBnd:\t0000000000000000", "CapBnd:\t0000000000200000"),
            ("CapAmb:\t0000000000000000\n", ""), ("NoNewPrivs:\t1", "NoNewPrivs:\t0"),
            ("Seccomp:\t2", "Seccomp:\t1"), ("Seccomp_filters:\t3", "Seccomp_filters:\t2"),
            ("Seccomp_filters:\t3", "Seccomp_filters:\t4"),
        ])
    func finds(_ part: String, _ replacement: String) throws {
        let range = try #require(Self.good.range(of: part))
        let text = Self.good.replacingCharacters(in: range, with: replacement)
        #expect(verification.problem(in: ProcessStatus(parsing: Array(text.utf8))) != nil)
    }
}

extension String {
    /// The first position of `part`.
    fileprivate func range(of part: String) -> Range<Index>? {
        for start in indices where self[start...].hasPrefix(part) {
            return start..<index(start, offsetBy: part.count)
        }
        return nil
    }

    fileprivate func replacingCharacters(in range: Range<Index>, with text: String) -> String {
        self[..<range.lowerBound] + text + self[range.upperBound...]
    }
}

@Suite("Worker uids")
struct WorkerUIDTests {
    @Test("a uid rests as long as possible before it is used again")
    func rests() throws {
        var uids = try #require(WorkerUIDs(base: 100, count: 3))
        let first = uids.lease()
        uids.giveBack(100)
        #expect(first == 100)
        #expect([uids.lease(), uids.lease(), uids.lease(), uids.lease()] == [101, 102, 100, nil])
    }

    @Test("a range that an account or a process uses is found out")
    func findsCollision() throws {
        #expect(try #require(WorkerUIDs(base: 0, count: 1)).collision(except: [])?.contains("root") == true)
        #expect(try #require(WorkerUIDs(base: 0x7200_0000, count: 16)).collision(except: []) == nil)
    }

    @Test("a file of subordinate uids that can not be read is not taken for one without ranges")
    func unreadableSubordinates() throws {
        let host = try Host()
        let uids = try #require(WorkerUIDs(base: 0x7200_0000, count: 16))
        let file = host.folder + "/subuid"
        #expect(try !uids.overlapsSubordinates(file))
        try replaceFile(file, with: Array("alice:\(0x7200_000f):1\n".utf8), mode: 0o600)
        #expect(try uids.overlapsSubordinates(file))
        #expect(throws: SystemError.self) { try uids.overlapsSubordinates(host.folder) }
        try replaceFile(file, with: [UInt8](repeating: 0x23, count: 1 << 20 + 1), mode: 0o600)
        #expect(throws: SystemError.self) { try uids.overlapsSubordinates(file) }
    }

    @Test("a range ends at the last uid there is")
    func lastUID() {
        #expect(WorkerUIDs(base: .max - 1, count: 1)?.range == (UInt32.max - 1)..<UInt32.max)
        for (base, count) in [(UInt32.max - 1, UInt32(2)), (.max, 1), (.max, 0), (0xFFFF_0000, 65536), (5, .max)] {
            #expect(WorkerUIDs(base: base, count: count) == nil, "\(base) and \(count)")
        }
    }
}

@Suite("Letting go of strangers' files", .serialized)
struct UndertakerTests {
    @Test("a socket with an unread file in it is closed by a child, and the broker goes on at once")
    func buries() throws {
        let loop = try EventLoop()
        let undertaker = Undertaker(loop: loop)
        let lingering = try LingeringSocket()
        let pair = try makeMessagePair()
        try lingering.move(into: pair.first.raw)
        let before = monotonicNanoseconds()
        undertaker.letGo(pair.second, owner: 1000)
        #expect(monotonicNanoseconds() - before < 1_000_000_000)
        #expect(undertaker.waiting(for: 1000) == 1)
        let deadline = monotonicNanoseconds() + 20_000_000_000
        while undertaker.waiting(for: 1000) > 0, monotonicNanoseconds() < deadline {
            loop.after(milliseconds: 20) { loop.stop() }
            try loop.run()
        }
        #expect(undertaker.waiting(for: 1000) == 0)
    }

    @Test("a socket that is no Unix socket, as systemd's store may have one, is closed by a child: its close may wait")
    func strangeSocket() throws {
        let loop = try EventLoop()
        let undertaker = Undertaker(loop: loop)
        let lingering = try LingeringSocket()
        let before = monotonicNanoseconds()
        undertaker.letGo(FileDescriptor(owning: lingering.take()), owner: 0, isStranger: true)
        #expect(monotonicNanoseconds() - before < 1_000_000_000)
        #expect(undertaker.waiting(for: 0) == 1)
        try run(loop, until: { undertaker.waiting(for: 0) == 0 })
        #expect(undertaker.waiting(for: 0) == 0)
    }

    @Test("an empty message does not hide the file behind it")
    func seesThroughEmptyMessages() throws {
        let undertaker = Undertaker(loop: try EventLoop())
        let lingering = try LingeringSocket()
        let pair = try makeMessagePair()
        try SystemCalls.send(pair.first.raw, [])
        try lingering.move(into: pair.first.raw)
        let before = monotonicNanoseconds()
        undertaker.letGo(pair.second, owner: 1000)
        #expect(monotonicNanoseconds() - before < 1_000_000_000)
        #expect(undertaker.waiting(for: 1000) == 1)
    }

    @Test("files of one user that never close hang in a few children of one parent, and the user is told how many")
    func manyHang() throws {
        let loop = try EventLoop()
        let undertaker = Undertaker(loop: loop)
        let lingering = try (0..<40).map { _ in try LingeringSocket() }
        let before = openFiles()
        for socket in lingering {
            let pair = try makeMessagePair()
            try socket.move(into: pair.first.raw)
            undertaker.letGo(pair.second, owner: 1000)
        }
        #expect(undertaker.waiting(for: 1000) == 40)
        #expect(undertaker.waiting(for: 1001) == 0)
        // The bin, the socket to the child, and its pidfd, however many files.
        #expect(openFiles() <= before + 4)
        let most = 1 + Int(ClosingChild.closers)
        try run(loop, until: { processes(of: undertaker).count == most })
        #expect(processes(of: undertaker).count == most)
        // Another user's file is closed meanwhile.
        let pair = try makeMessagePair()
        let harmless = try makePipe()
        try SystemCalls.send(pair.first.raw, [1], files: [harmless.first.raw])
        undertaker.letGo(pair.second, owner: 1001)
        try run(loop, until: { undertaker.waiting(for: 1001) == 0 })
        #expect(undertaker.waiting(for: 1001) == 0)
        #expect(undertaker.waiting(for: 1000) == 40)
        // A lingering close ends with a signal.
        for pid in processes(of: undertaker) { kill(pid, SIGKILL) }
        try run(loop, until: { undertaker.waiting(for: 1000) == 0 })
        #expect(undertaker.waiting(for: 1000) == 0)
    }

    @Test("a child that is killed is replaced, and what it had not closed is closed")
    func killedChild() throws {
        let loop = try EventLoop()
        let undertaker = Undertaker(loop: loop)
        for round in 0..<3 {
            var ends: [Int32] = [0, 0]
            try call("pipe") { pipe2(&ends, O_CLOEXEC) }
            let pair = try makeMessagePair()
            try SystemCalls.send(pair.first.raw, [1], files: [ends[1]])
            undertaker.letGo(pair.second, owner: 1000)
            for pid in undertaker.children where round < 2 { kill(pid, SIGKILL) }
            // The other end of the pipe shows when no process has this one any more.
            close(ends[1])
            let reader = FileDescriptor(owning: ends[0])
            try reader.setNonBlocking()
            var byte: UInt8 = 0
            let raw = reader.raw
            try run(loop, until: { read(raw, &byte, 1) == 0 && undertaker.waiting(for: 1000) == 0 })
            #expect(undertaker.waiting(for: 1000) == 0)
            #expect(reader.raw == raw)
        }
        try run(loop, until: { undertaker.children.isEmpty })
        #expect(undertaker.children.isEmpty)
    }

    @Test("files for which a child has no room are kept, count, and are closed when there is room again")
    func triesAgain() throws {
        let loop = try EventLoop()
        let undertaker = Undertaker(loop: loop)
        let pipe = try makePipe()
        for index in 0..<600 {
            let pair = try makeMessagePair()
            try SystemCalls.send(pair.first.raw, [1], files: [pipe.first.raw])
            undertaker.letGo(pair.second, owner: 1000)
            if index == 0 { for pid in undertaker.children { kill(pid, SIGSTOP) } }
        }
        #expect(undertaker.waiting(for: 1000) == 600)
        // The bin is one more.
        #expect(undertaker.descriptors.count > 2)
        for pid in undertaker.children { kill(pid, SIGCONT) }
        try run(loop, until: { undertaker.waiting(for: 1000) == 0 })
        #expect(undertaker.waiting(for: 1000) == 0)
        #expect(undertaker.descriptors.count <= 1)
    }

    @Test("a socket with sockets within sockets in it is closed, as deep as the kernel lets them lie in each other")
    func nested() throws {
        let loop = try EventLoop()
        let undertaker = Undertaker(loop: loop)
        var ends: [Int32] = [0, 0]
        try call("pipe") { pipe2(&ends, O_CLOEXEC | O_NONBLOCK) }
        let reader = ends[0]
        defer { close(reader) }
        var inner = ends[1]
        var depth = 0
        while depth < 10 {
            let pair = try makeMessagePair()
            guard (try? SystemCalls.send(pair.first.raw, [1], files: [inner])) != nil else { break }
            close(inner)
            inner = try pair.second.duplicate().release()
            depth += 1
        }
        #expect(depth > 3)
        undertaker.letGo(FileDescriptor(owning: inner), owner: 1000)
        #expect(undertaker.waiting(for: 1000) == 1)
        var byte: UInt8 = 0
        try run(loop, until: { read(reader, &byte, 1) == 0 && undertaker.waiting(for: 1000) == 0 })
        #expect(undertaker.waiting(for: 1000) == 0)
        #expect(read(reader, &byte, 1) == 0)
    }

    /// The deadline is for a machine that builds beside the test: 600 closes took more than 20 s there.
    private func run(_ loop: EventLoop, until condition: () -> Bool) throws {
        let deadline = monotonicNanoseconds() + 120_000_000_000
        while !condition(), monotonicNanoseconds() < deadline {
            loop.after(milliseconds: 20) { loop.stop() }
            try loop.run()
        }
    }

    private func openFiles() -> Int { listFolder("/proc/self/fd").count }

    /// The processes that close files for it, and their children.
    private func processes(of undertaker: Undertaker) -> [Int32] {
        let parents = undertaker.children
        return parents
            + listFolder("/proc").compactMap { Int32($0) }.filter { pid in
                guard let bytes = try? readFile("/proc/\(pid)/stat"),
                    let fields = String(decoding: bytes, as: UTF8.self).split(separator: ")").last?.split(
                        separator: " "),
                    fields.count > 1, fields[0] != "Z", let parent = Int32(fields[1])
                else { return false }
                return parents.contains(parent)
            }
    }

    @Test("what is left at the broker's end is closed by a child, and not before the broker has let go of it")
    func leaves() throws {
        let lingering = try LingeringSocket()
        let pair = try makeMessagePair()
        try lingering.move(into: pair.first.raw)
        let before = monotonicNanoseconds()
        Undertaker.leave([pair.second.raw])
        // The number is open on another file, which is closed as usual.
        let status = try pair.second.status()
        #expect(status.st_mode & S_IFMT == S_IFIFO)
        #expect(monotonicNanoseconds() - before < 1_000_000_000)
    }

    @Test("a socket with plain bytes in it needs no child")
    func closesPlain() throws {
        let loop = try EventLoop()
        let undertaker = Undertaker(loop: loop)
        let pair = try makeMessagePair()
        try SystemCalls.send(pair.first.raw, [1, 2, 3])
        undertaker.letGo(pair.second, owner: 1000)
        #expect(undertaker.waiting(for: 1000) == 0)
    }
}

/// A TCP connection whose last close waits: unsent data, SO_LINGER, and a peer that does not read.
final class LingeringSocket {
    private let listener: Int32
    private let peer: Int32
    private let sender: Int32

    init() throws {
        let listener = Glibc.socket(AF_INET, Int32(SOCK_STREAM.rawValue), 0)
        self.listener = listener
        var address = sockaddr_in()
        address.sin_family = sa_family_t(AF_INET)
        address.sin_addr.s_addr = UInt32(0x7f00_0001).bigEndian
        var size = socklen_t(MemoryLayout<sockaddr_in>.size)
        let small: Int32 = 4096
        setsockopt(listener, SOL_SOCKET, SO_RCVBUF, [small], 4)
        let bound = withUnsafePointer(to: &address) {
            bind(listener, __CONST_SOCKADDR_ARG(__sockaddr_in__: $0), size)
        }
        guard bound == 0, Glibc.listen(listener, 1) == 0 else { throw SystemError("listen", errno) }
        withUnsafeMutablePointer(to: &address) {
            _ = getsockname(listener, __SOCKADDR_ARG(__sockaddr_in__: $0), &size)
        }
        let sender = Glibc.socket(AF_INET, Int32(SOCK_STREAM.rawValue), 0)
        self.sender = sender
        let connected = withUnsafePointer(to: &address) {
            Glibc.connect(sender, __CONST_SOCKADDR_ARG(__sockaddr_in__: $0), size)
        }
        guard connected == 0 else { throw SystemError("connect", errno) }
        peer = Glibc.accept(listener, __SOCKADDR_ARG(), nil)
        _ = fcntl(sender, F_SETFL, O_NONBLOCK)
        let junk = [UInt8](repeating: 0, count: 65536)
        while write(sender, junk, junk.count) > 0 {}
        _ = fcntl(sender, F_SETFL, 0)
        var wait = linger(l_onoff: 1, l_linger: 5)
        setsockopt(sender, SOL_SOCKET, SO_LINGER, &wait, socklen_t(MemoryLayout<linger>.size))
    }

    /// Its number, which is the caller's from then on.
    func take() -> Int32 { sender }

    /// Sends it; from then on the only copy is the one in that socket.
    func move(into socket: Int32) throws {
        try SystemCalls.send(socket, [1], files: [sender])
        close(sender)
    }

    deinit {
        close(peer)
        close(listener)
    }
}
