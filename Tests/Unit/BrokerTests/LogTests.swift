import Glibc
import SystemCalls
import Testing

@testable import ubd_broker

@Suite("The broker's log")
struct LogTests {
    private static let forged = "lo\nOct 1 root: granted \u{1b}[31m\"\\ü"

    @Test("a stranger's text can neither end the line nor look like a field")
    func escapes() {
        #expect(Log.escaped("/dev/ublkb0") == "/dev/ublkb0")
        #expect(Log.escaped("x\nevent=added") == "\"x\\x0aevent=added\"")
        #expect(Log.escaped("a\" b=\\") == "\"a\\\" b=\\\\\"")
        #expect(Log.escaped("\u{1b}[31m") == "\"\\x1b[31m\"")
        #expect(Log.escaped("ü") == "\"\\xc3\\xbc\"")
        #expect(Log.escaped("") == "\"\"")
        #expect(Log.escaped(String(repeating: "a", count: 600)).utf8.count < 530)
    }

    @Test("an entry of the journal has the line, and each key as a field")
    func fields() {
        let entry = JournalEntry(
            .notice, "add-refused", [("uid", "1002"), ("io-timeout", "3"), ("why", "no line fits")])
        #expect(
            text(entry) == """
                MESSAGE=event=add-refused uid=1002 io-timeout=3 why="no line fits"
                PRIORITY=5
                SYSLOG_IDENTIFIER=ubd-broker
                MESSAGE_ID=\(EventIDs.all["add-refused"] ?? "?")
                UBD_EVENT=add-refused
                UBD_UID=1002
                UBD_IO_TIMEOUT=3
                UBD_REASON=no line fits

                """)
    }

    @Test("a stranger's text is escaped in the line and in its field, and makes no field of its own")
    func escapesFields() {
        let entry = JournalEntry(.notice, "add-refused", [("target", LogTests.forged)])
        let lines = text(entry).split(separator: "\n")
        #expect(entry.bytes.allSatisfy { (0x20...0x7e).contains($0) || $0 == 0x0a })
        #expect(lines.last == #"UBD_TARGET=lo\x0aOct 1 root: granted \x1b[31m"\\\xc3\xbc"#)
        #expect(lines.first == #"MESSAGE=event=add-refused target="lo\x0aOct 1 root: granted \x1b[31m\"\\\xc3\xbc""#)
        #expect(lines.count == 6)
    }

    @Test("a value with a newline goes with its length before it")
    func lengths() {
        var entry = JournalEntry(.info, "x", [])
        let before = entry.bytes.count
        entry.add("UBD_TEXT", "a\nUBD_UID=0")
        let expected = Array("UBD_TEXT\n".utf8) + [11, 0, 0, 0, 0, 0, 0, 0] + Array("a\nUBD_UID=0\n".utf8)
        #expect(Array(entry.bytes[before...]) == expected)
    }

    @Test("the longest values of many keys fit into a datagram")
    func isBounded() {
        let long = String(repeating: "\n", count: 100_000)
        let entry = JournalEntry(.info, "x", (0..<16).map { ("key\($0)", long) })
        #expect(entry.bytes.count < 100_000)
    }

    @Test("every kind of event has a MESSAGE_ID of its own")
    func numbers() {
        #expect(EventIDs.all.count > 50)
        #expect(Set(EventIDs.all.values).count == EventIDs.all.count)
        #expect(EventIDs.all.values.allSatisfy { $0.utf8.count == 32 && UInt64($0.prefix(16), radix: 16) != nil })
    }

    private func text(_ entry: JournalEntry) -> String { String(decoding: entry.bytes, as: UTF8.self) }
}

@Suite("How much of the log a client can cause")
struct LogLimitsTests {
    private static let second: UInt64 = 1_000_000_000

    @Test("refusals of one user are written at first, then one in two seconds, and how many were left out is told")
    func bounded() {
        var limits = LogLimits()
        var written = 0
        // 35,000 in a second.
        for index in 0..<35_000 where limits.admits(.refusal, of: 1002, now: UInt64(index) * 28_571) { written += 1 }
        #expect(written == 20)
        let tooSoon = limits.takeLeftOut(now: 9 * Self.second)
        #expect(tooSoon == [])
        let told = limits.takeLeftOut(now: 11 * Self.second)
        #expect(told.map(\.count) == [35_000 - 20])
        #expect(told.map(\.account) == [1002])
        let nothingMore = limits.takeLeftOut(now: 30 * Self.second)
        #expect(nothingMore == [])
        let later = (0..<10).count { _ in limits.admits(.refusal, of: 1002, now: 40 * Self.second) }
        #expect(later == 10)
    }

    @Test("neither another user's refusals nor what he is allowed suffer")
    func apart() {
        var limits = LogLimits()
        for _ in 0..<1000 { _ = limits.admits(.refusal, of: 1002, now: 0) }
        let more = [
            limits.admits(.refusal, of: 1002, now: 0), limits.admits(.refusal, of: 1001, now: 0),
            limits.admits(.request, of: 1002, now: 0),
        ]
        #expect(more == [false, true, true])
        let requests = (0..<5000).count { _ in limits.admits(.request, of: 1000, now: 0) }
        #expect(requests == 1200)
    }

    @Test("however many users there are, the table and the lines are bounded")
    func manyUsers() {
        var limits = LogLimits()
        var written = 0
        for round in 0..<30 {
            for uid in 0..<5000
            where limits.admits(.refusal, of: 100_000 + UInt32(uid), now: UInt64(round) * Self.second) {
                written += 1
            }
        }
        #expect(written <= (LogLimits.mostAccounts + 1) * (20 + 15))
        let told = limits.takeLeftOut(now: 60 * Self.second)
        #expect(told.count <= LogLimits.mostAccounts + 1)
        #expect(told.map(\.count).reduce(0, +) == 30 * 5000 - written)
        #expect(told.contains { $0.account == nil })
        // Their places are free again.
        let another = limits.admits(.refusal, of: 5, now: 200 * Self.second)
        #expect(another)
        let rest = limits.takeLeftOut(now: 200 * Self.second, all: true)
        #expect(rest == [])
    }
}

@Suite("Lines on stderr")
struct LogOutputTests {
    private let line = Array("<5>event=x\n".utf8)

    /// Writes until no more fits, without waiting; returns the number of lines.
    private func fill(_ output: LogOutput) -> Int {
        let started = monotonicNanoseconds()
        let taken = (0..<1_000_000).prefix { _ in output.write(line) }.count
        #expect(monotonicNanoseconds() - started < 10_000_000_000)
        #expect(taken < 1_000_000)
        return taken
    }

    @Test("a pipe that nobody reads takes what it can, and nobody waits; it goes on when it was read")
    func fullPipe() throws {
        let pipe = try makePipe()
        let output = LogOutput(pipe.second.raw)
        #expect(fill(output) > 100)
        // Other processes that share the end are not affected.
        #expect(try call("fcntl") { fcntl(pipe.second.raw, F_GETFL) } & O_NONBLOCK == 0)
        var scratch = [UInt8](repeating: 0, count: 1 << 16)
        #expect(read(pipe.first.raw, &scratch, scratch.count) > 0)
        #expect(output.write(line))
    }

    @Test("nobody waits for a stream socket that is full, and no line is torn")
    func fullSocket() throws {
        var ends: [Int32] = [0, 0]
        try call("socketpair") { socketpair(AF_UNIX, Int32(SOCK_STREAM.rawValue), 0, &ends) }
        let reader = FileDescriptor(owning: ends[0])
        let writer = FileDescriptor(owning: ends[1])
        let output = LogOutput(writer.raw)
        #expect(fill(output) > 10)
        var text: [UInt8] = []
        var scratch = [UInt8](repeating: 0, count: 1 << 16)
        for _ in 0..<3 {
            var count = 0
            repeat {
                count = recv(reader.raw, &scratch, scratch.count, Int32(MSG_DONTWAIT))
                if count > 0 { text += scratch[..<count] }
            } while count > 0
            _ = output.write(line)
        }
        #expect(text.split(separator: UInt8(ascii: "\n")).allSatisfy { $0 == line.dropLast() })
    }

    @Test("nobody waits for a terminal that is stopped")
    func stoppedTerminal() throws {
        let terminal = FileDescriptor(owning: try call("posix_openpt") { posix_openpt(O_RDWR | O_NOCTTY) })
        #expect(unlockpt(terminal.raw) == 0)
        let name = String(cString: try #require(ptsname(terminal.raw)))
        let side = try FileDescriptor.open(name, O_RDWR | O_NOCTTY)
        #expect(fill(LogOutput(side.raw)) > 0)
    }

    @Test("a line is cut at what a pipe takes as a whole")
    func cut() throws {
        let pipe = try makePipe()
        let output = LogOutput(pipe.second.raw)
        #expect(output.write([UInt8](repeating: 65, count: 100_000) + [10]))
        var scratch = [UInt8](repeating: 0, count: 1 << 17)
        let count = read(pipe.first.raw, &scratch, scratch.count)
        #expect(count == 4096)
        #expect(scratch[4092..<4096].elementsEqual("...\n".utf8))
    }
}

@Suite("The way to journald")
struct JournalSocketTests {
    @Test("stderr is the journal's only when it is the very descriptor that systemd made")
    func knowsTheStream() throws {
        let pair = try makeMessagePair()
        let status = try pair.first.status()
        #expect(JournalSocket.isStream(pair.first.raw, "\(status.st_dev):\(status.st_ino)"))
        #expect(!JournalSocket.isStream(pair.second.raw, "\(status.st_dev):\(status.st_ino)"))
        for other in ["", ":", "\(status.st_dev)", "\(status.st_dev):\(status.st_ino) "] {
            #expect(!JournalSocket.isStream(pair.first.raw, other), "\(other)")
        }
        #expect(!JournalSocket.isStream(-1, "0:0"))
    }

    @Test("it delivers an entry, and refuses at once when journald is not there or has no room")
    func neverWaits() throws {
        let path = "/tmp/ubd-journal-test-\(getpid())"
        unlink(path)
        let socket = try #require(JournalSocket(path: path))
        #expect(!socket.send([1]))
        let journald = FileDescriptor(owning: Glibc.socket(AF_UNIX, Int32(SOCK_DGRAM.rawValue), 0))
        var address = try #require(unixAddress(path))
        let size = socklen_t(MemoryLayout<sockaddr_un>.size)
        try call("bind") {
            withUnsafePointer(to: &address) {
                Glibc.bind(journald.raw, __CONST_SOCKADDR_ARG(__sockaddr_un__: $0), size)
            }
        }
        defer { unlink(path) }
        #expect(socket.send(Array("UBD_EVENT=x\n".utf8)))
        var buffer = [UInt8](repeating: 0, count: 64)
        #expect(recv(journald.raw, &buffer, buffer.count, 0) == 12)
        let started = monotonicNanoseconds()
        let taken = (0..<10_000).prefix { _ in socket.send([UInt8](repeating: 65, count: 1024)) }.count
        #expect(taken < 10_000)
        #expect(monotonicNanoseconds() - started < 5_000_000_000)
    }
}

@Suite("Signs of life for systemd")
struct NotificationTests {
    @Test(
        "they come twice in the time that systemd allows this process",
        arguments: [
            (["WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "7"], 15_000), (["WATCHDOG_USEC": "30000000"], 15_000),
            (["WATCHDOG_USEC": "1"], 1), (["WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "8"], nil), ([:], nil),
            (["WATCHDOG_USEC": "0"], nil), (["WATCHDOG_USEC": "soon"], nil),
        ] as [([String: String], Int?)])
    func period(_ environment: [String: String], _ expected: Int?) {
        #expect(Notification.watchdogPeriod({ environment[$0] }, pid: 7) == expected)
    }

    @Test("they are lost, and nobody waits, while systemd does not read them")
    func unread() throws {
        let path = "/tmp/ubd-notify-test-\(getpid())"
        unlink(path)
        let systemd = FileDescriptor(owning: socket(AF_UNIX, Int32(SOCK_DGRAM.rawValue | SOCK_NONBLOCK.rawValue), 0))
        var address = try #require(unixAddress(path))
        let size = socklen_t(MemoryLayout<sockaddr_un>.size)
        try call("bind") {
            withUnsafePointer(to: &address) { bind(systemd.raw, __CONST_SOCKADDR_ARG(__sockaddr_un__: $0), size) }
        }
        defer { unlink(path) }
        // More than a socket's queue holds (net.unix.max_dgram_qlen).
        let taken = (0..<2000).prefix { _ in Notification.send("WATCHDOG=1", waiting: false, to: path) }.count
        #expect((1..<2000).contains(taken))
        var buffer = [UInt8](repeating: 0, count: 64)
        var count = 0
        while recv(systemd.raw, &buffer, buffer.count, 0) == 10 { count += 1 }
        #expect(count == taken)
        #expect(Notification.send("WATCHDOG=1", waiting: false, to: path))
        #expect(Notification.send("WATCHDOG=1", waiting: false, to: path + "-that-is-not"))
    }

    @Test("one that systemd has no room for is sent again soon, not a whole period later")
    func again() throws {
        let loop = try EventLoop()
        var times: [UInt64] = []
        Notification.keepAlive(loop, every: 700) { said in
            #expect(said == "WATCHDOG=1")
            times.append(monotonicNanoseconds())
            if times.count == 4 { loop.stop() }
            // The first two are not accepted.
            return times.count > 2
        }
        try loop.run()
        let gaps = zip(times.dropFirst(), times).map { ($0 - $1) / 1_000_000 }
        #expect(gaps[0] < 700 && gaps[1] < 700 && gaps[2] >= 690, "\(gaps)")
    }
}
