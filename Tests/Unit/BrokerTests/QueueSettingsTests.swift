import BrokerInterface
import Glibc
import KernelABI
import SystemCalls
import Testing

@testable import ubd_broker

@Suite("What a new device's queue is told")
struct QueueSettingsTests {
    private func settings(queues: UInt16, depth: UInt16 = 128, noticesDeaths: Bool) -> [String] {
        QueueSettings.of(queues: queues, depth: depth, noticesDeaths: noticesDeaths).map { "\($0.name)=\($0.text)" }
    }

    @Test("a disk of one queue gets no scheduler; more queues have none by themselves")
    func scheduler() {
        #expect(settings(queues: 1, noticesDeaths: true) == ["scheduler=none"])
        #expect(settings(queues: 2, noticesDeaths: true) == [])
    }

    @Test(
        "where the kernel does not notice the death of a busy server, one request stays its own and its timeout is short"
    )
    func oldKernel() {
        #expect(settings(queues: 2, noticesDeaths: false) == ["scheduler=none", "io_timeout=2000", "nr_requests=127"])
        #expect(settings(queues: 1, depth: 4, noticesDeaths: false) == ["scheduler=none", "io_timeout=2000"])
    }

    /// The queue's folder in a host's sysfs, with files, or pipes that nobody reads.
    private func makeQueue(_ host: Host, full: Set<String> = []) throws -> String {
        var folder = host.folder
        for part in ["sys", "block", "ublkb0", "queue"] {
            folder += "/" + part
            #expect(mkdir(folder, 0o755) == 0)
        }
        for name in ["scheduler", "io_timeout", "nr_requests"] {
            if full.contains(name) {
                #expect(mkfifo("\(folder)/\(name)", 0o600) == 0)
            } else {
                close(try FileDescriptor.open("\(folder)/\(name)", O_WRONLY | O_CREAT).release())
            }
        }
        return folder
    }

    private func text(_ path: String) -> String {
        (try? readFile(path)).map { String(decoding: $0, as: UTF8.self) } ?? "?"
    }

    @Test("it is told before the device is its owner's")
    func beforeTheOwner() throws {
        let host = try Host(mayChown: false)
        let folder = try makeQueue(host)
        let node = host.folder + "/ublkb0"
        var atTheGiving = ""
        host.loop.after(milliseconds: 300) {
            atTheGiving = text(folder + "/scheduler") + text(folder + "/io_timeout")
            _ = chmod(node, 0o600) == 0 && chown(node, 1000, gid_t.max) == 0
        }
        _ = try host.add().get()
        #expect(atTheGiving == "none2000")
        #expect(try host.delete(0) == nil)
        #expect(host.leftovers == [])
    }

    @Test("a device without recovery is told the same: its readers wait for their errors, too")
    func withoutRecovery() throws {
        let host = try Host()
        let folder = try makeQueue(host)
        _ = try host.add(AddRequest(target: "null", recovery: "none")).get()
        #expect(text(folder + "/io_timeout") + " " + text(folder + "/nr_requests") == "2000 127")
    }

    @Test("what is so already is not written")
    func already() throws {
        let host = try Host()
        let folder = try makeQueue(host)
        for (name, text) in [("scheduler", "[none] mq-deadline\n"), ("io_timeout", "30000\n"), ("nr_requests", "64\n")]
        {
            try FileDescriptor.open("\(folder)/\(name)", O_WRONLY).writeAll(Array(text.utf8))
        }
        _ = try host.add().get()
        // New text follows the old text, since these are no files of the kernel.
        #expect(text(folder + "/scheduler") == "[none] mq-deadline\n")
        #expect(text(folder + "/io_timeout") == "30000\n2000")
    }

    @Test(
        "a setting that never ends keeps only a child waiting, which counts against its owner; the device comes up, and goes"
    )
    func neverEnds() throws {
        let host = try Host()
        let folder = try makeQueue(host, full: ["scheduler"])
        let pipe = try FileDescriptor.open(folder + "/scheduler", O_RDWR | O_NONBLOCK)
        let kilobytes = [UInt8](repeating: 0, count: 1 << 16)
        while kilobytes.withUnsafeBytes({ write(pipe.raw, $0.baseAddress!, $0.count) }) > 0 {}
        var atFirst = -1
        host.loop.after(milliseconds: 1000) { atFirst = host.broker.undertaker.waiting(for: 1000) }
        let (device, _) = try host.add().get()
        #expect(device.state == .live)
        #expect(atFirst == 0)
        #expect(host.broker.undertaker.waiting(for: 1000) == 1)
        #expect(text(folder + "/io_timeout") == "")
        #expect(try host.delete(0) == nil)
        // With a reader the child continues to the end.
        var scratch = [UInt8](repeating: 0, count: 1 << 16)
        while scratch.withUnsafeMutableBytes({ read(pipe.raw, $0.baseAddress!, $0.count) }) > 0 {}
        try host.run(until: { host.broker.undertaker.waiting(for: 1000) == 0 })
        #expect(text(folder + "/io_timeout") == "2000")
    }

    @Test("a setting that never ends counts against its owner also when the add has failed meanwhile")
    func neverEndsAndClientGoes() throws {
        let host = try Host()
        let folder = try makeQueue(host, full: ["scheduler"])
        let pipe = try FileDescriptor.open(folder + "/scheduler", O_RDWR | O_NONBLOCK)
        let kilobytes = [UInt8](repeating: 0, count: 1 << 16)
        while kilobytes.withUnsafeBytes({ write(pipe.raw, $0.baseAddress!, $0.count) }) > 0 {}
        var isOver = false
        let add = host.broker.add(AddRequest(target: "null"), peer: Host.alice) { _ in isOver = true }
        host.loop.after(milliseconds: 500) { add?.clientGone() }
        try host.run { isOver }
        try host.run(until: { host.broker.undertaker.waiting(for: 1000) == 1 })
        var scratch = [UInt8](repeating: 0, count: 1 << 16)
        while scratch.withUnsafeMutableBytes({ read(pipe.raw, $0.baseAddress!, $0.count) }) > 0 {}
        try host.run(until: { host.broker.undertaker.waiting(for: 1000) == 0 })
        #expect(host.leftovers == [])
    }

    @Test("the end of a child that can not be watched is heard all the same")
    func unwatchedChild() throws {
        func pidfds() -> Set<Int32> {
            let numbers = listFolder("/proc/self/fd").compactMap { Int32($0) }
            return Set(numbers.filter { linkTarget("/proc/self/fd/\($0)")?.contains("pidfd") == true })
        }
        let loop = try EventLoop()
        let file = try FileDescriptor.null()
        let before = pidfds()
        let child = try ShortChild([file.raw], nil)
        // A second watch of the same file is refused (EEXIST).
        for pidfd in pidfds().subtracting(before) { _ = try? loop.watch(pidfd, .readable) { _ in } }
        var status: Int32?
        child.goOn(loop) {
            status = $0
            loop.stop()
        }
        loop.after(milliseconds: 5000) { loop.stop() }
        try loop.run()
        #expect(status == 0)
    }

    @Test("a setting that the kernel does not have is no reason to fail")
    func notThere() throws {
        let host = try Host()
        let (device, _) = try host.add().get()
        #expect(device.state == .live)
    }
}
