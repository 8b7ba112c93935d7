import CLauncher
import Glibc
import SystemCalls
import Testing

@testable import ubd_broker

/// A disk of number 259:0 that only a mount can hold.
private struct OneDisk: HolderSources {
    func bytes(of path: String) throws(SystemError) -> [UInt8]? {
        path == "/sys/class/block/ublkb0/dev" ? Array("259:0\n".utf8) : nil
    }
    func names(in folder: String) throws(SystemError) -> [String]? { folder == "/sys/class/block" ? ["ublkb0"] : nil }
    func target(of link: String) throws(SystemError) -> String? { nil }
}

@Suite("The child that reads the host's mounts")
struct HoldersTests {
    private final class Asked {
        let loop: EventLoop
        let holders: Holders
        var answers: [Holding] = []
        var starts = 0

        init(deadline: Int = 5000, _ start: @escaping (inout ubd_child) -> Int32) throws {
            let loop = try EventLoop()
            self.loop = loop
            var counted: (() -> Void)?
            holders = Holders(loop: loop, holders: DeviceHolders(host: OneDisk()), deadline: deadline) { child in
                counted?()
                return start(&child)
            }
            counted = { [unowned self] in starts += 1 }
        }

        func ask(_ disk: String = "ublkb0") { holders.ask(disk) { [unowned self] in answers.append($0) } }

        func run(until condition: @escaping () -> Bool) throws {
            let end = monotonicNanoseconds() + 10_000_000_000
            while !condition() {
                if monotonicNanoseconds() > end {
                    Issue.record("no answer within 10 s")
                    return
                }
                loop.after(milliseconds: 1) { [loop] in loop.stop() }
                try loop.run()
            }
        }
    }

    /// A file with that text, as long as this value exists.
    private final class Table {
        private let file: FileDescriptor
        var path: String { "/proc/\(getpid())/fd/\(file.raw)" }

        init(_ text: String) throws {
            file = FileDescriptor(owning: try call("memfd_create") { memfd_create("mounts", UInt32(MFD_CLOEXEC)) })
            try file.writeAll(Array(text.utf8))
        }
    }

    private let line = "22 1 8:1 / / rw - ext4 /dev/sda1 rw\n"

    @Test(
        "tells where a disk is mounted, also behind ten thousand others, and that it is not", arguments: [true, false])
    func tells(_ isMounted: Bool) throws {
        let many = String(repeating: line, count: 10_000)
        let table = try Table(many + (isMounted ? "40 22 259:0 / /mnt rw - ext4 x rw\n" : ""))
        let asked = try Asked { ubd_copy(table.path, &$0) }
        asked.ask()
        try asked.run { !asked.answers.isEmpty }
        #expect(asked.answers == [isMounted ? .held("mounted on /mnt") : .free])
        withExtendedLifetime(table) {}
    }

    @Test("reads the host's own table")
    func real() throws {
        let asked = try Asked { ubd_copy("/proc/self/mountinfo", &$0) }
        asked.ask()
        try asked.run { !asked.answers.isEmpty }
        #expect(asked.answers == [.free])
    }

    @Test("is not needed for a disk that there is not")
    func noDisk() throws {
        let asked = try Asked { ubd_copy("/proc/self/mountinfo", &$0) }
        asked.ask("ublkb1")
        try asked.run { !asked.answers.isEmpty }
        #expect(asked.answers == [.free] && asked.starts == 0)
    }

    @Test("is one at a time, and those who ask while it reads share the next one's answer")
    func shared() throws {
        let table = try Table(line)
        let asked = try Asked { ubd_copy(table.path, &$0) }
        for _ in 0..<5 { asked.ask() }
        try asked.run { asked.answers.count == 5 }
        #expect(asked.answers == [Holding](repeating: .free, count: 5))
        #expect(asked.starts == 2)
        withExtendedLifetime(table) {}
    }

    @Test("makes the answer unknown, with the reason, when it can't be started, can't read, or reads what is no table")
    func fails() throws {
        let nonsense = try Table("nothing\n")
        let cases: [((inout ubd_child) -> Int32, String)] = [
            ({ _ in -EAGAIN }, "the host's mounts can not be read: Resource temporarily unavailable"),
            ({ ubd_copy("/nowhere", &$0) }, "the host's mounts can not be read: No such file or directory"),
            ({ ubd_copy("/tmp", &$0) }, "the host's mounts can not be read: Is a directory"),
            ({ ubd_copy("/dev/null", &$0) }, "the host's table of mounts is malformed"),
            ({ ubd_copy(nonsense.path, &$0) }, "the host's table of mounts is malformed"),
        ]
        for (start, why) in cases {
            let asked = try Asked(start)
            asked.ask()
            try asked.run { !asked.answers.isEmpty }
            #expect(asked.answers == [.unknown(why)])
        }
        withExtendedLifetime(nonsense) {}
    }

    @Test(
        "has a deadline: whoever waits for one that hangs is told, those who ask next at once, and later it works again"
    )
    func hangs() throws {
        var ends: [Int32] = [0, 0]
        #expect(pipe2(&ends, O_CLOEXEC) == 0)
        defer { for end in ends { close(end) } }
        // A pipe without a writer: the child reads it for ever.
        let path = "/proc/\(getpid())/fd/\(ends[0])"
        let table = try Table(line)
        var hangs = true
        let asked = try Asked(deadline: 100) { ubd_copy(hangs ? path : table.path, &$0) }
        asked.ask()
        asked.ask()
        try asked.run { asked.answers.count == 2 }
        #expect(
            asked.answers
                == [Holding](repeating: .unknown("the host's mounts could not be read within 0.1 s"), count: 2))
        asked.ask()
        try asked.run { asked.answers.count == 3 }
        #expect(asked.starts == 1 || asked.answers[2] == .unknown("the host's mounts could not be read within 0.1 s"))
        hangs = false
        try asked.run {
            if asked.answers.last != .free { asked.ask() }
            return asked.answers.last == .free
        }
        withExtendedLifetime(table) {}
    }
}
