import BrokerInterface
import Dialing
import Foundation
import Glibc
import SystemCalls
import Testing
import Varlink

@testable import NBDClient

@Suite("The keeper")
struct KeeperTests {
    private static func folder() throws -> String {
        var template = Array("/tmp/ubd-XXXXXX".utf8CString)
        guard mkdtemp(&template) != nil else { throw Failed(program: "mkdtemp") }
        return String(decoding: template.dropLast().map { UInt8(bitPattern: $0) }, as: UTF8.self)
    }

    @Test("brings as many fresh connections as the device had, with what the server says, and ends with the device")
    func restores() throws {
        let memory = try MemoryServer()
        let broker = try Broker(memory.broker)
        let kept = try memory.keep(connections: 2)
        let monitor = try broker.next()
        #expect(try MonitorRequest(parameters: monitor.call.parameters) == MonitorRequest(ids: [3], keep: true))
        Broker.tell(monitor.socket, .live, waits: false)
        Broker.send(monitor.socket, MonitorReply(change: nil).reply)
        Broker.tell(monitor.socket, .recovering, waits: true)
        let recover = try broker.next()
        let request = try RecoverRequest(parameters: recover.call.parameters)
        #expect(request.id == 3 && request.generation == 9)
        #expect(request.options.first { $0.name == "size" }?.value == String(10 << 20))
        #expect(request.options.map(\.name).contains("export-flags"))
        let sockets = try Broker.takeSockets(recover.socket, 2)
        #expect(sockets.count == 2)
        for socket in sockets { #expect(readSector(socket, at: 4096) != nil) }
        Broker.send(recover.socket, AddReply.added(Broker.device, notices: []).reply)
        Broker.tell(monitor.socket, nil, waits: false)
        #expect(kept.hasEnded())
        for file in sockets + [monitor.socket, recover.socket] { close(file) }
    }

    @Test("lets the server finish what it had received before it dials again")
    func drains() throws {
        // Each write takes two seconds, in a process that the end of a connection does not stop.
        let server = try RealServer(
            "nbdkit",
            [
                "-f", "-U", "%S", "eval", "get_size=echo 1M", "can_write=exit 0",
                "pread=dd if=%D/raw skip=$4 count=$3 iflag=skip_bytes,count_bytes status=none",
                "pwrite=sleep 2; dd of=%D/raw seek=$4 oflag=seek_bytes conv=notrunc status=none",
            ]
        ) { folder, _ in try Data(count: 1 << 20).write(to: folder.appendingPathComponent("raw")) }
        let address = try server.address("nbd+unix:///?socket=%S")
        let first = try Dialer(address: address).dial().takeFile()
        let data = [UInt8](repeating: 0xAB, count: 512)
        let request =
            Wire.number(UInt32(0x2560_9513)) + [0, 0, 0, 1] + Wire.number(UInt64(1)) + Wire.number(UInt64(0))
            + Wire.number(UInt32(512)) + data
        #expect(write(first, request, request.count) == request.count)
        let started = monotonicNanoseconds()
        #expect(try Barrier.run([first], Deadline(seconds: 20), Attention()))
        #expect(monotonicNanoseconds() - started > 1_500_000_000)
        let second = try Dialer(address: address).dial().takeFile()
        #expect(readSector(second, at: 0) == data, "the write landed after the barrier")
        for file in [first, second] { close(file) }
        // A server that says nothing is not waited for without end.
        let silent = try makeMessagePair()
        #expect(try !Barrier.run([silent.first.raw], Deadline(milliseconds: 200), Attention()))
    }

    @Test("takes a server's answers before it ends a connection with half a request, of which nbdkit 1.32 would die")
    func halfRequest() throws {
        let server = try RealServer("nbdkit", ["-f", "-U", "%S", "--filter=delay", "memory", "10M", "rdelay=5ms"])
        let address = try server.address("nbd+unix:///?socket=%S")
        for _ in 0..<5 {
            let file = try Dialer(address: address).dial().takeFile()
            var bytes: [UInt8] = []
            for number in 0..<60 {
                bytes += Wire.number(UInt32(0x2560_9513)) + [0, 0, 0, 0] + Wire.number(UInt64(number))
                bytes += Wire.number(UInt64(number) * 4096) + Wire.number(UInt32(4096))
            }
            bytes.removeLast(14)
            #expect(write(file, bytes, bytes.count) == bytes.count)
            #expect(try Barrier.run([file], Deadline(seconds: 20), Attention()))
            close(file)
        }
        #expect(try Dialer(address: address).ask().size == 10 << 20)
    }

    @Test("asks a broker that comes back again, and ends when that does not know the device")
    func brokerGone() throws {
        let memory = try MemoryServer()
        let path = memory.broker
        let kept: Kept
        do {
            let broker = try Broker(path)
            kept = try memory.keep(connections: 1)
            let monitor = try broker.next()
            Broker.tell(monitor.socket, .live, waits: false)
            close(monitor.socket)
        }
        unlink(path)
        let broker = try Broker(path)
        let again = try broker.next()
        #expect(again.call.methodName == "Monitor")
        let error = InterfaceError.noSuchDevice(message: "there is none", remedy: "", id: 3)
        Broker.send(again.socket, Reply(error: error.name, parameters: error.parameters))
        #expect(kept.hasEnded())
        close(again.socket)
    }

    @Test("starts a command again only when it may, and ends it with the device")
    func command() throws {
        for restarts in [false, true] {
            let folder = try Self.folder()
            let marks = folder + "/marks"
            let broker = try Broker(folder + "/b")
            let script = "echo $$ >>\(marks); exec nbdkit -f memory 1M"
            let kept = try Kept(
                (restarts ? ["--restart-command"] : []) + ["--broker", broker.path, "--", "sh", "-c", script], count: 1,
                server: true)
            let monitor = try broker.next()
            Broker.tell(monitor.socket, .live, waits: false)
            func pids() -> [pid_t] {
                ((try? String(contentsOfFile: marks, encoding: .utf8)) ?? "").split(separator: "\n").compactMap {
                    pid_t($0)
                }
            }
            let first = try #require(pids().first)
            kill(first, SIGKILL)
            usleep(200_000)
            Broker.tell(monitor.socket, .recovering, waits: true)
            if restarts {
                let recover = try broker.next()
                let sockets = try Broker.takeSockets(recover.socket, 1)
                #expect(readSector(sockets[0], at: 0) != nil)
                Broker.send(recover.socket, AddReply.added(Broker.device, notices: []).reply)
                for file in sockets + [recover.socket] { close(file) }
            } else {
                var waiting = pollfd(fd: broker.listener.raw, events: Int16(POLLIN), revents: 0)
                #expect(poll(&waiting, 1, 1500) == 0)
            }
            #expect(pids().count == (restarts ? 2 : 1))
            Broker.tell(monitor.socket, nil, waits: false)
            #expect(kept.hasEnded())
            for pid in pids() { #expect(kill(pid, 0) == -1 && errno == ESRCH) }
            close(monitor.socket)
            try? FileManager.default.removeItem(atPath: folder)
        }
    }

    @Test("lets a server that it started end in its own way, and at once, when the device is gone")
    func serverEnds() throws {
        let folder = try Self.folder()
        let broker = try Broker(folder + "/b")
        let kept = try Kept(
            [
                "--broker", broker.path, "--", "nbdkit", "-f", "eval", "get_size=echo 1M",
                "pread=cat /dev/zero | head -c $3",
                "unload=echo >\(folder)/unloaded",
            ], count: 2, server: true)
        let monitor = try broker.next()
        let told = monotonicNanoseconds()
        Broker.tell(monitor.socket, nil, waits: false)
        #expect(kept.hasEnded())
        // After 10 s it would have been killed.
        #expect(monotonicNanoseconds() - told < 9_000_000_000 && access(folder + "/unloaded", F_OK) == 0)
        close(monitor.socket)
        try? FileManager.default.removeItem(atPath: folder)
    }

    @Test("does not wait for the answer of a server that it started and that ended before it answered")
    func commandEndsAgain() throws {
        let folder = try Self.folder()
        let broker = try Broker(folder + "/b")
        // The second time it ends without taking a connection.
        let script =
            "echo >>\(folder)/marks; if [ $(wc -l <\(folder)/marks) = 2 ]; then sleep 0.3; exit; fi; "
            + "exec nbdkit -f memory 1M"
        let kept = try Kept(
            ["--restart-command", "--broker", broker.path, "--", "sh", "-c", "echo $$ >\(folder)/pid; \(script)"],
            count: 1, server: true)
        let monitor = try broker.next()
        let text = try String(contentsOfFile: folder + "/pid", encoding: .utf8)
        kill(try #require(pid_t(text.trimmingCharacters(in: .newlines))), SIGKILL)
        usleep(200_000)
        let started = monotonicNanoseconds()
        Broker.tell(monitor.socket, .recovering, waits: true)
        let recover = try broker.next()
        #expect(monotonicNanoseconds() - started < 15_000_000_000, "a connection is given 30 s")
        let sockets = try Broker.takeSockets(recover.socket, 1)
        #expect(readSector(sockets[0], at: 0) != nil)
        Broker.tell(monitor.socket, nil, waits: false)
        Broker.send(recover.socket, AddReply.added(Broker.device, notices: []).reply)
        #expect(kept.hasEnded())
        for file in sockets + [monitor.socket, recover.socket] { close(file) }
        try? FileManager.default.removeItem(atPath: folder)
    }

    @Test("pauses longer and longer, but finds a server within a second at first")
    func backOff() {
        var pause = BackOff()
        #expect((0..<6).map { _ in pause.next() } == [0, 100, 200, 400, 500, 500])
        for _ in 0..<1000 { _ = pause.next() }
        #expect(pause.next() == BackOff.longest)
    }

    @Test("makes lost connections again at once, but after twenty in a row only one a second")
    func losses() {
        var losses = Losses()
        let second: UInt64 = 1_000_000_000
        let burst: [Int] = (0..<23).map { _ in losses.pause(now: 50 * second) }
        #expect(burst.prefix(20).allSatisfy { $0 == 0 } && burst.suffix(3) == [1000, 2000, 3000])
        // For a connection that is lost once a second nobody waits longer.
        let steady: [Int] = (54..<59 as Range<UInt64>).map { losses.pause(now: $0 * second) }
        #expect(steady.allSatisfy { $0 == 0 })
        #expect(losses.pause(now: 1000 * second) == 0)
        var pause = BackOff(unanswered: 1, atLeast: 700)
        let pauses: [Int] = [pause.next(), pause.next()]
        #expect(pauses == [700, 100])
    }

    @Test("pauses longer and longer, up to 5 s, when it has connections again and again over which nothing is answered")
    func unanswered() throws {
        let firsts = (0...8 as ClosedRange<Int64>).map { count in
            var pause = BackOff(unanswered: count)
            return pause.next()
        }
        #expect(firsts == [0, 100, 200, 400, 800, 1600, 3200, 5000, 5000])
        for count in [-1, .max] as [Int64] {
            var pause = BackOff(unanswered: count)
            #expect(pause.next() == (count < 0 ? 0 : 5000))
            #expect(pause.next() == 100, "a server that goes then is looked for as any other")
        }
        let memory = try MemoryServer()
        let broker = try Broker(memory.broker)
        let kept = try memory.keep(connections: 1)
        let monitor = try broker.next()
        for (count, milliseconds) in [(nil, 0), (5, 1600)] as [(Int64?, UInt64)] {
            let told = monotonicNanoseconds()
            Broker.tell(monitor.socket, .recovering, waits: true, unanswered: count)
            let recover = try broker.next()
            #expect(monotonicNanoseconds() - told >= milliseconds * 1_000_000)
            let sockets = try Broker.takeSockets(recover.socket, 1)
            Broker.send(recover.socket, AddReply.added(Broker.device, notices: []).reply)
            for file in sockets + [recover.socket] { close(file) }
        }
        Broker.tell(monitor.socket, nil, waits: false)
        #expect(kept.hasEnded())
        close(monitor.socket)
    }

    @Test("ends connections that it has sent before it makes others, also when the broker's answer to them was lost")
    func answerLost() throws {
        let memory = try MemoryServer()
        let broker = try Broker(memory.broker)
        let kept = try memory.keep(connections: 1)
        let monitor = try broker.next()
        Broker.tell(monitor.socket, .recovering, waits: true)
        let first = try broker.next()
        let lost = try Broker.takeSockets(first.socket, 1)
        #expect(readSector(lost[0], at: 0) != nil)
        close(first.socket)
        Broker.tell(monitor.socket, .recovering, waits: true, unanswered: 1)
        let second = try broker.next()
        var byte: UInt8 = 0
        #expect(recv(lost[0], &byte, 1, Int32(MSG_DONTWAIT)) == 0, "the server has not closed it")
        let sockets = try Broker.takeSockets(second.socket, 1)
        #expect(readSector(sockets[0], at: 0) != nil)
        Broker.send(second.socket, AddReply.added(Broker.device, notices: []).reply)
        Broker.tell(monitor.socket, nil, waits: false)
        #expect(kept.hasEnded())
        for file in lost + sockets + [monitor.socket, second.socket] { close(file) }
    }

    @Test("tells once why the broker refuses to tell it of the device, however often it asks")
    func refusedOften() throws {
        let memory = try MemoryServer()
        let broker = try Broker(memory.broker)
        let path = memory.server.folder.path + "/log"
        let log = socket(AF_UNIX, Int32(SOCK_DGRAM.rawValue), 0)
        defer { close(log) }
        var address = try #require(unixAddress(path))
        let bound = withUnsafePointer(to: &address) {
            bind(log, __CONST_SOCKADDR_ARG(__sockaddr_un__: $0), socklen_t(MemoryLayout<sockaddr_un>.size))
        }
        #expect(bound == 0)
        let kept = try memory.keep(connections: 1, log: path)
        let busy = InterfaceError.busy(message: "has a keeper", remedy: "end it", id: 3, holder: "process 1")
        let gone = InterfaceError.noSuchDevice(message: "there is none", remedy: "", id: 3)
        for error in [busy, busy, busy, gone] {
            let call = try broker.next()
            Broker.send(call.socket, Reply(error: error.name, parameters: error.parameters))
            close(call.socket)
        }
        #expect(kept.hasEnded())
        var lines: [String] = []
        var bytes = [UInt8](repeating: 0, count: 1024)
        while true {
            let count = recv(log, &bytes, bytes.count, Int32(MSG_DONTWAIT))
            guard count > 0 else { break }
            lines.append(String(decoding: bytes[..<count], as: UTF8.self))
        }
        #expect(lines.count == 1 && lines[0].hasSuffix("device 3: has a keeper; end it"), "\(lines)")
    }

    @Test("does not read a server that sends faster than it is read without looking at its deadline")
    func endlessAnswers() throws {
        // One read takes one message.
        let pair = try makeMessagePair()
        for _ in 0..<3 * Barrier.readsInARow { _ = try send(pair.second.raw, [1]) }
        var connection = Barrier.Connection(file: pair.first.raw)
        connection.read()
        #expect(connection.state == .open)
        var left = 0
        var byte: UInt8 = 0
        while recv(pair.first.raw, &byte, 1, Int32(MSG_DONTWAIT)) == 1 { left += 1 }
        #expect(left == 2 * Barrier.readsInARow)
    }

    @Test("waits for a server whose bytes can not be read, and not for one whose connection is broken")
    func unreadable() throws {
        // A datagram to a port where nobody listens: reading fails, and nothing has ended.
        let file = socket(AF_INET, Int32(SOCK_DGRAM.rawValue | SOCK_CLOEXEC.rawValue), 0)
        defer { close(file) }
        var address = sockaddr_in()
        address.sin_family = sa_family_t(AF_INET)
        address.sin_addr.s_addr = in_addr_t(0x7F00_0001).bigEndian
        address.sin_port = in_port_t(1).bigEndian
        let size = socklen_t(MemoryLayout<sockaddr_in>.size)
        let connected = withUnsafePointer(to: &address) {
            connect(file, __CONST_SOCKADDR_ARG(__sockaddr_in__: $0), size)
        }
        #expect(connected == 0 && Glibc.send(file, [1], 1, 0) == 1)
        var waiting = pollfd(fd: file, events: Int16(POLLIN), revents: 0)
        #expect(poll(&waiting, 1, 5000) == 1)
        #expect(try !Barrier.run([file], Deadline(milliseconds: 200), Attention()))
        // Closed with something unread, which makes a reset of it.
        var pair: [Int32] = [-1, -1]
        #expect(socketpair(AF_UNIX, Int32(SOCK_STREAM.rawValue), 0, &pair) == 0)
        defer { close(pair[0]) }
        #expect(write(pair[0], [1], 1) == 1)
        close(pair[1])
        #expect(try Barrier.run([pair[0]], Deadline(seconds: 5), Attention()))
    }
}
