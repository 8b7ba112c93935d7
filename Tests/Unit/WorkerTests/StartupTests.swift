import CShims
import Glibc
import SystemCalls
import Testing
import WorkerProtocol

@testable import Worker

/// The real program, as far as it gets without a ublk device.
@Suite("The worker program")
struct StartupTests {
    private let null: LaunchMessage = {
        var launch = LaunchMessage(target: .null, queues: 2, depth: 8, maxIOBytes: 65536)
        launch.options.size = 1 << 20
        return launch
    }()

    private func memory() throws -> FileDescriptor {
        FileDescriptor(owning: try call("memfd_create") { memfd_create("x", 0) })
    }

    /// A parking end with `files` in it, as a client and the broker leave it.
    private func parked(_ files: [Int32]) throws -> FileDescriptor {
        let pair = try makeMessagePair()
        if !files.isEmpty { try send(pair.first.raw, [0], files: files) }
        shutdown(pair.second.raw, Int32(SHUT_RDWR))
        return FileDescriptor(owning: pair.second.release())
    }

    @Test("tells its geometry, and exits with the reason when the driver refuses its fetches")
    func fetchRefused() throws {
        let file = try memory()
        let broker = try FakeBroker(device: file.raw)
        try broker.launch(null, parking: try parked([]))
        guard case .geometry(let geometry) = try broker.next() else {
            Issue.record("no geometry")
            return
        }
        #expect(geometry.size == 1 << 20)
        try send(broker.control.raw, ServeMessage(affinity: [[1], [3]]).encoded())
        guard case .failed(let failure) = try broker.next() else {
            Issue.record("no failure")
            return
        }
        #expect(failure.step == .fetch)
        #expect(failure.errno == EOPNOTSUPP)
        #expect(failure.detail < 2)
        #expect(try broker.ending() == .exited(1))
    }

    @Test("maps the descriptors only after its fetches were taken")
    func mapRefused() throws {
        // /dev/null takes any URING_CMD (Linux 6.1), and no mmap.
        let file = try FileDescriptor.open("/dev/null", O_RDWR)
        let broker = try FakeBroker(device: file.raw)
        try broker.launch(null, parking: try parked([]))
        _ = try broker.next()
        try send(broker.control.raw, ServeMessage().encoded())
        guard case .failed(let failure) = try broker.next() else {
            Issue.record("no failure")
            return
        }
        #expect(failure.step == .mapDescriptors)
        #expect(failure.errno == ENODEV)
    }

    @Test("stands behind a filter, holds its own descriptors only, and no more, while it waits")
    func waiting() throws {
        let file = try memory()
        let broker = try FakeBroker(device: file.raw)
        try broker.launch(null, parking: try parked([]))
        _ = try broker.next()
        #expect(try broker.status("Seccomp") == "2")
        #expect(try broker.status("Threads") == "1")
        var held: [Int32] = []
        for number: Int32 in 0..<64
        where faccessat(AT_FDCWD, "/proc/\(broker.pid)/fd/\(number)", F_OK, AT_SYMLINK_NOFOLLOW) == 0 {
            held.append(number)
        }
        #expect(held == Array(0..<WorkerDescriptor.firstFile))
        // Stopped and continued, as the broker will do, it still waits for the same message.
        try broker.stopAndContinue()
        try send(broker.control.raw, ServeMessage().encoded())
        guard case .failed = try broker.next() else {
            Issue.record("no answer after being stopped")
            return
        }
    }

    @Test("takes the parked files, leaves them parked, and bounds what it may write")
    func parkedFiles() throws {
        let file = try TestFile(bytes: 1 << 20)
        let direct = try FileDescriptor.open(file.path, O_RDWR | O_DIRECT)
        let parking = try parked([file.file.raw, direct.raw])
        // A device that a broker of an earlier version made keeps the old layout.
        for layout in LaunchMessage.Layout.allCases {
            let device = try memory()
            let broker = try FakeBroker(device: device.raw)
            var launch = LaunchMessage(target: .loop, queues: 1, depth: 8, maxIOBytes: 65536)
            launch.options.offset = 4096
            launch.options.size = 65536
            launch.layout = layout
            try broker.launch(launch, parking: parking)
            guard case .geometry(let geometry) = try broker.next() else {
                Issue.record("no geometry")
                return
            }
            #expect(geometry.size == 65536)
            #expect(!geometry.attributes.contains(.buffered))
            let limits = String(decoding: try readFile("/proc/\(broker.pid)/limits"), as: UTF8.self)
            let line = limits.split(separator: "\n").first { $0.hasPrefix("Max file size") }
            #expect(line?.split(separator: " ").dropFirst(3).prefix(2) == ["69632", "69632"])
        }
    }

    @Test("refuses a file that can't back a device, by name and place")
    func badFile() throws {
        let file = try TestFile(bytes: 4096)
        let directory = try FileDescriptor.open("/tmp", O_RDONLY)
        try expectFailure(
            LaunchMessage(target: .loop, queues: 1, depth: 1, maxIOBytes: 4096),
            parking: try parked([file.file.raw, directory.raw]), WorkerFailure(.fileIsDirectory, detail: 1))
    }

    @Test("refuses to serve a file that was never parked, or too many")
    func fileCount() throws {
        let launch = LaunchMessage(target: .loop, queues: 1, depth: 1, maxIOBytes: 4096)
        try expectFailure(launch, parking: try parked([]), WorkerFailure(.fileCount, detail: 0))
        try expectFailure(
            launch, parking: try parked([0, 0, 0]), WorkerFailure(.peekFiles, errno: EMSGSIZE))
    }

    @Test("refuses a bundle that is none")
    func badBundle() throws {
        try expectFailure(
            null, bundle: [1, 2, 3], parking: try parked([]),
            WorkerFailure(.launchMessage, errno: EBADMSG, detail: UInt64(WorkerDescriptor.bundle)))
    }

    @Test("dies at the first call that its filter forbids")
    func filter() throws {
        let file = try memory()
        let broker = try FakeBroker(device: file.raw)
        var bundle = try FakeBroker.bundle(.null)
        bundle.setupFilter = [FakeBroker.killAll]
        try broker.launch(null, bundle: bundle.encoded(), parking: try parked([]))
        #expect(try broker.ending() == .killed(signal: SIGSYS))
    }

    @Test("refuses any other message than 'serve'")
    func wrongMessage() throws {
        let file = try memory()
        let broker = try FakeBroker(device: file.raw)
        try broker.launch(null, parking: try parked([]))
        _ = try broker.next()
        try send(broker.control.raw, ServeMessage().encoded() + [0])
        #expect(try broker.next() == .failed(WorkerFailure(.controlMessage, errno: EBADMSG)))
        #expect(try broker.ending() == .exited(1))
    }

    @Test("refuses a launch message without its files, or one that is none")
    func launchMessage() throws {
        let file = try memory()
        let broker = try FakeBroker(device: file.raw)
        try send(broker.control.raw, null.encoded(), files: [file.raw])
        #expect(try broker.next() == .failed(WorkerFailure(.launchMessage, detail: 1)))
        let other = try FakeBroker(device: file.raw)
        try send(other.control.raw, [1, 2, 3], files: WorkerDescriptor.launchFiles.map { _ in file.raw })
        #expect(try other.next() == .failed(WorkerFailure(.launchMessage, errno: EBADMSG)))
    }

    @Test("has a version, a help text, and nothing to offer without a broker")
    func commandLine() throws {
        func run(_ arguments: [String]) throws -> (Int32, String) {
            let pipe = try makePipe()
            let pid = try FakeBroker.spawn(arguments, output: pipe.second.raw)
            let reader = pipe.first.release()
            close(pipe.second.release())
            let text = String(decoding: try FileDescriptor(owning: reader).readAll(limit: 4096), as: UTF8.self)
            var status: Int32 = 0
            waitpid(pid, &status, 0)
            return (status >> 8, text)
        }
        #expect(try run(["--version"]) == (0, "ubd-worker \(workerVersion)\n"))
        #expect(try run(["--help"]).1.contains("usage: ubd-worker"))
        let full = FileDescriptor(owning: open("/dev/full", O_WRONLY | O_CLOEXEC))
        for option in ["--help", "--version"] {
            var status: Int32 = 0
            waitpid(try FakeBroker.spawn([option], output: full.raw), &status, 0)
            #expect(status >> 8 == 1, "\(option)")
        }
        let junk = try run(["--junk"])
        #expect(junk.0 == 2)
        #expect(junk.1.contains("'--junk'"))
        let alone = try run([])
        #expect(alone.0 == 2)
        #expect(alone.1.contains("started by ubd-broker"))
    }

    private func expectFailure(
        _ launch: LaunchMessage, bundle: [UInt8]? = nil, parking: borrowing FileDescriptor, _ failure: WorkerFailure
    ) throws {
        let file = try memory()
        let broker = try FakeBroker(device: file.raw)
        try broker.launch(launch, bundle: bundle, parking: parking)
        #expect(try broker.next() == .failed(failure))
        #expect(try broker.ending() == .exited(1))
    }
}
