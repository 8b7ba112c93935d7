import CShims
import Glibc
import Sandbox
import SystemCalls
import Targets
import Testing
import WorkerProtocol

@testable import Worker

/// The real program behind both of its shipped filters, serving: /dev/null stands in for the driver and answers every
/// command at once with a read of nothing (Tests/Support/CStandIn).
@Suite("The serving worker", .serialized)
struct ServingTests {
    /// A connection as an NBD client leaves it, and the server's end, which stays open as long as the tests run.
    private static func server() throws -> (near: Int32, far: Int32) {
        var pair: [Int32] = [0, 0]
        try call("socketpair") { socketpair(AF_UNIX, Int32(SOCK_STREAM.rawValue | SOCK_CLOEXEC.rawValue), 0, &pair) }
        ClientSocketTests.lock(pair[0])
        return (pair[0], pair[1])
    }

    /// Starts a worker up to "sealed".
    private func serving(
        _ target: TargetManifest, queues: UInt16 = 1, servers: [(near: Int32, far: Int32)]? = nil
    ) throws -> FakeBroker {
        let device = try FileDescriptor.open("/dev/null", O_RDWR)
        let broker = try FakeBroker(device: device.raw, standIn: true)
        let pair = try makeMessagePair()
        let file = try TestFile(bytes: 1 << 20)
        var launch = LaunchMessage(target: target, queues: queues, depth: 4, maxIOBytes: 65536)
        if target.inputs.first?.role == .sockets {
            // Servers that say nothing, unless the test has its own.
            let servers = try servers ?? (0..<queues).map { _ in try Self.server() }
            try send(pair.first.raw, [0], files: servers.map(\.near))
            for server in servers { close(server.near) }
            launch.options.size = 1 << 20
            launch.options[TargetOption.NBD.exportFlags] = .number(0x105)
        } else if target.hasBlockMap {
            let reader = try FileDescriptor.open(file.path, O_RDONLY)
            let layer = try OverlayOpenTests.memory(1 << 20)
            let map = try OverlayOpenTests.memory(BlockMap.bytes(disk: 1 << 20))
            try send(pair.first.raw, [0], files: [layer.raw, map.raw, reader.raw])
            launch.options.size = 1 << 20
            launch.options.layerKind = .memory
        } else if target.isInMemory {
            let memory = memfd_create("test", UInt32(MFD_CLOEXEC | MFD_ALLOW_SEALING))
            defer { close(memory) }
            // F_ADD_SEALS: SEAL, SHRINK and GROW.
            #expect(ftruncate(memory, 1 << 20) == 0 && fcntl(memory, 1033, Int32(1 | 2 | 4)) == 0)
            try send(pair.first.raw, [0], files: [memory])
            launch.options.size = 1 << 20
        } else if !target.inputs.isEmpty {
            let key = try CryptTargetTests.secret(CryptTargetTests.key(64))
            let control = try FaultTargetTests.control()
            let more = (target.takesSecret ? [key.raw] : []) + (target.takesControl ? [control.file.raw] : [])
            try send(pair.first.raw, [0], files: [file.file.raw] + more)
        }
        try broker.launch(launch, parking: pair.second)
        guard case .geometry = try broker.next() else { throw SystemError("no geometry", EPROTO) }
        try send(broker.control.raw, ServeMessage().encoded())
        let answer = try broker.next()
        guard case .sealed(let report) = answer else {
            throw SystemError("not sealed but \(String(describing: answer))", EPROTO)
        }
        #expect(report.contains(.rings))
        #expect(report.contains(.landlock) == (Landlock.version > 0))
        return broker
    }

    @Test("lives behind two filters on every thread, and can open no file any more", arguments: TargetList.all)
    func walls(target: TargetManifest) throws {
        let queues: UInt16 = target.queues == .one ? 1 : 2
        let broker = try serving(target, queues: queues)
        #expect(try broker.survives())
        let threads = try broker.threads()
        // The main thread, one for each queue, and the range thread.
        let discards =
            [.loop, .memory, .overlay, .fault].contains(target) && KernelVersion.running() >= KernelVersion(6, 7)
        #expect(threads.count == 1 + Int(queues) + (discards ? 1 : 0))
        let own = String(decoding: try readFile("/proc/self/status"), as: UTF8.self)
            .split(separator: "\n").first { $0.hasPrefix("Seccomp_filters:") }?.split(separator: "\t").last
        let inherited = try #require(own.flatMap { Int($0) })
        for thread in threads {
            #expect(try broker.status("Seccomp", thread: thread) == "2")
            #expect(try broker.status("Seccomp_filters", thread: thread) == "\(inherited + 2)")
        }
        let limits = String(decoding: try readFile("/proc/\(broker.pid)/limits"), as: UTF8.self)
        let line = limits.split(separator: "\n").first { $0.hasPrefix("Max open files") }
        #expect(line?.split(separator: " ").dropFirst(3).prefix(2) == ["0", "0"])
    }

    @Test("goes on after it was stopped and continued", arguments: TargetList.all)
    func stopped(target: TargetManifest) throws {
        let broker = try serving(target)
        for _ in 0..<5 {
            try broker.stopAndContinue()
            #expect(try broker.survives())
        }
    }

    @Test("ignores the signal of a broken pipe, and ends with its own status when a server goes or talks nonsense")
    func servers() throws {
        for (talk, status) in [
            ([], WorkerExit.connectionLost), (Array("no reply to anything".utf8), WorkerExit.serverViolation),
        ] {
            // One queue: two threads of a debug build that is never without a request can meet in malloc, whose lock the filter forbids.
            let servers = try [Self.server()]
            let broker = try serving(.nbd, servers: servers)
            #expect(try broker.survives())
            let ignored = try broker.status("SigIgn").flatMap { UInt64($0, radix: 16) }
            #expect(ignored.map { $0 & 1 << (SIGPIPE - 1) != 0 } == true)
            if talk.isEmpty {
                close(servers[0].far)
            } else {
                #expect(Glibc.write(servers[0].far, talk, talk.count) == talk.count)
            }
            let ending = try broker.ending()
            #expect(ending == .exited(status))
        }
    }

    @Test("ends when the broker says something that has no meaning")
    func violation() throws {
        let broker = try serving(.null)
        try send(broker.control.raw, ServeMessage().encoded())
        #expect(try broker.ending() == .exited(WorkerExit.protocolViolation))
    }

    @Test("serves on when its socket is dead, without burning time over it, and through a stop")
    func deadSocket() throws {
        let broker = try serving(.null)
        shutdown(broker.control.raw, Int32(SHUT_RDWR))
        #expect(try broker.survives())
        try broker.stopAndContinue()
        #expect(try broker.survives())
        #expect(try broker.status("State")?.hasPrefix("S") == true)
        let before = try broker.status("nonvoluntary_ctxt_switches")
        usleep(100_000)
        #expect(try broker.status("State")?.hasPrefix("S") == true)
        #expect(try broker.status("nonvoluntary_ctxt_switches") == before)
    }
}
