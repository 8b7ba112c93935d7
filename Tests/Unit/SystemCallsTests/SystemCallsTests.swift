import Glibc
import Testing

@testable import SystemCalls

@Suite("Kernel versions")
struct KernelVersionTests {
    @Test(
        "are read from release strings",
        arguments: [
            ("6.12.95+deb12-cloud-amd64", KernelVersion(6, 12)), ("7.3-rc1", KernelVersion(7, 3)),
            ("7.3", KernelVersion(7, 3)), ("6.18.44-fc-v669", KernelVersion(6, 18)),
        ])
    func reading(release: String, version: KernelVersion) {
        #expect(KernelVersion(release: release) == version)
    }

    @Test("are not made up from other strings", arguments: ["", "6", "six.one", ".", "6."])
    func nonsense(release: String) {
        #expect(KernelVersion(release: release) == nil)
    }

    @Test("compare by major, then minor")
    func order() {
        #expect(KernelVersion(6, 9) < KernelVersion(6, 12))
        #expect(KernelVersion(6, 18) < KernelVersion(7, 0))
        #expect(KernelVersion.running() > KernelVersion(5, 0))
    }
}

@Suite("Errors of system calls")
struct SystemErrorTests {
    @Test("say what was tried and why it failed")
    func text() {
        #expect(SystemError("open /x", ENOENT).description == "open /x: No such file or directory")
        #expect(SystemError.name(EACCES) == "EACCES")
    }

    @Test("carry the errno of a call that failed")
    func thrown() {
        #expect(throws: SystemError("open /nonexistent/file", ENOENT)) {
            _ = try FileDescriptor.open("/nonexistent/file", O_RDONLY).raw
        }
    }
}

@Suite("Reading a whole file")
struct ReadAllTests {
    @Test("does not depend on the offset, which a worker that starts at the same time may be moving")
    func sharedOffset() throws {
        let file = FileDescriptor(owning: try call("memfd_create") { memfd_create("test", UInt32(MFD_CLOEXEC)) })
        let content = (0..<40_000).map { UInt8(truncatingIfNeeded: $0) }
        try file.writeAll(content)
        #expect(try file.readWhole(limit: 40_000) == content)
        #expect(lseek(file.raw, 0, SEEK_CUR) == 40_000)
        #expect(throws: SystemError("pread", EFBIG)) { try file.readWhole(limit: 39_999) }
    }
}

@Suite("Files over sockets")
struct SocketTests {
    private func bytes(_ count: Int) -> UnsafeMutableRawBufferPointer {
        .allocate(byteCount: count, alignment: 8)
    }

    @Test("arrive with their message, and are the same open files")
    func filesArrive() throws {
        let pair = try makeMessagePair()
        let file = FileDescriptor(owning: try call("memfd_create") { memfd_create("x", 0) })
        try send(pair.first.raw, [9], files: [file.raw, file.raw])
        let buffer = bytes(8)
        defer { buffer.deallocate() }
        let received = try receiveWithFiles(pair.second.raw, into: buffer, maximum: 2, peek: false)
        #expect(received.bytes == 1)
        #expect(received.files.count == 2)
        for number in received.files {
            var a = stat()
            fstat(number, &a)
            #expect(a.st_ino == (try file.status()).st_ino)
            close(number)
        }
    }

    @Test("stay parked when they are only peeked at")
    func peek() throws {
        let pair = try makeMessagePair()
        let file = FileDescriptor(owning: try call("memfd_create") { memfd_create("x", 0) })
        try send(pair.first.raw, [9], files: [file.raw])
        let buffer = bytes(8)
        defer { buffer.deallocate() }
        for _ in 0..<3 {
            let received = try receiveWithFiles(pair.second.raw, into: buffer, maximum: 2, peek: true)
            #expect(received.files.count == 1)
            for number in received.files { close(number) }
        }
    }

    @Test("behind an empty message are found: it is not the end")
    func behindEmptyMessage() throws {
        let pair = try makeMessagePair()
        let file = FileDescriptor(owning: try call("memfd_create") { memfd_create("x", 0) })
        try send(pair.first.raw, [])
        try send(pair.first.raw, [9], files: [file.raw])
        shutdown(pair.second.raw, Int32(SHUT_RDWR))
        let buffer = bytes(8)
        defer { buffer.deallocate() }
        #expect(try receiveWithoutFiles(pair.second.raw, into: buffer) == .bytes(0))
        #expect(try receiveWithoutFiles(pair.second.raw, into: buffer) == .filesAttached)
    }

    @Test("the end is told from an empty message, shut down or closed by the other side")
    func end() throws {
        let buffer = bytes(8)
        defer { buffer.deallocate() }
        let shut = try makeMessagePair()
        #expect(try receiveWithoutFiles(shut.second.raw, into: buffer) == .wouldBlock)
        try send(shut.first.raw, [])
        shutdown(shut.second.raw, Int32(SHUT_RDWR))
        #expect(try receiveWithoutFiles(shut.second.raw, into: buffer) == .bytes(0))
        #expect(try receiveWithoutFiles(shut.second.raw, into: buffer) == .closed)
        let left: FileDescriptor
        do {
            let pair = try makeMessagePair()
            left = FileDescriptor(owning: dup(pair.second.raw))
        }
        #expect(try receiveWithoutFiles(left.raw, into: buffer) == .closed)
    }

    @Test("more than expected are an error, and none is kept")
    func tooMany() throws {
        let pair = try makeMessagePair()
        let file = FileDescriptor(owning: try call("memfd_create") { memfd_create("x", 0) })
        try send(pair.first.raw, [9], files: [file.raw, file.raw, file.raw])
        let buffer = bytes(8)
        defer { buffer.deallocate() }
        #expect(throws: SystemError("recvmsg", EMSGSIZE)) {
            _ = try receiveWithFiles(pair.second.raw, into: buffer, maximum: 2, peek: true)
        }
    }

    @Test("are refused, without holding one, where none belong")
    func refused() throws {
        let pair = try makeMessagePair()
        let buffer = bytes(8)
        defer { buffer.deallocate() }
        #expect(try receiveWithoutFiles(pair.second.raw, into: buffer) == .wouldBlock)
        try send(pair.first.raw, [1, 2, 3])
        #expect(try receiveWithoutFiles(pair.second.raw, into: buffer) == .bytes(3))
        try send(pair.first.raw, [UInt8](repeating: 0, count: 9))
        #expect(try receiveWithoutFiles(pair.second.raw, into: buffer) == .tooLong)
    }

    @Test("are not overlooked when whoever shares the socket has moved the place where peeks begin")
    func displaced() throws {
        let pair = try makeMessagePair()
        let file = FileDescriptor(owning: try call("memfd_create") { memfd_create("x", 0) })
        try send(pair.first.raw, [1, 2, 3], files: [file.raw])
        try send(pair.first.raw, [4])
        // Behind the first message: a peek sees the second one, and a receive would take the first one.
        try setOption(pair.second.raw, SO_PEEK_OFF, 3)
        let buffer = bytes(8)
        defer { buffer.deallocate() }
        #expect(try receiveWithoutFiles(pair.second.raw, into: buffer, isShared: true) == .filesAttached)
        // Nothing was taken.
        try setOption(pair.second.raw, SO_PEEK_OFF, -1)
        #expect(try receiveWithoutFiles(pair.second.raw, into: buffer, isShared: true) == .filesAttached)
    }

    @Test("a message with files is seen as such")
    func seen() throws {
        let pair = try makeMessagePair()
        try send(pair.first.raw, [1], files: [0])
        let buffer = bytes(8)
        defer { buffer.deallocate() }
        #expect(try receiveWithoutFiles(pair.second.raw, into: buffer) == .filesAttached)
    }
}

@Suite("Who is at the other end of a socket")
struct PeerTests {
    private func pair() throws -> (Int32, Int32) {
        var ends: [Int32] = [0, 0]
        try call("socketpair") { socketpair(AF_UNIX, Int32(SOCK_STREAM.rawValue), 0, &ends) }
        return (ends[0], ends[1])
    }

    @Test("its process, and of its groups those that are asked for")
    func groups() throws {
        let (one, other) = try pair()
        defer { for file in [one, other] { close(file) } }
        let all = try PeerCredentials(of: one)
        #expect(all.pid == getpid() && all.uid == geteuid() && all.gid == getegid())
        let count = getgroups(0, nil)
        #expect(all.groups.count == Int(count))
        #expect(try PeerCredentials(withoutGroupsOf: one).groups.isEmpty)
        for wanted in all.groups {
            let found = try PeerCredentials(of: one) { $0 == wanted }
            #expect(found.groups == all.groups.filter { $0 == wanted } && found.uid == all.uid)
        }
        #expect(try PeerCredentials(of: one) { _ in false }.groups.isEmpty)
    }

    @Test("that listens is trusted when it is root's or the caller's own, and where a container hides who it is")
    func listener() throws {
        let (one, other) = try pair()
        defer { for file in [one, other] { close(file) } }
        #expect(try Listener(of: one).uid == geteuid() && Listener(of: one).isTrusted)
        func isTrusted(_ uid: UInt32, _ map: String? = "         0          0 4294967295\n") -> Bool {
            Listener(uid: uid).isTrusted(by: 1000, overflow: 65534) { map.map { Array($0.utf8) } }
        }
        #expect(isTrusted(0) && isTrusted(1000) && !isTrusted(1001))
        // nobody is a user of the host, and in a container anybody of the host, its root included.
        #expect(!isTrusted(65534) && !isTrusted(65534, nil))
        #expect(isTrusted(65534, "0 1000 1\n") && !isTrusted(1001, "0 1000 1\n"))
    }

    @Test("it has ended when it sends no more and nothing is left, urgent data included")
    func ended() throws {
        let (one, other) = try pair()
        defer { close(one) }
        try setOption(one, SO_OOBINLINE, 1)
        #expect(!hasEnded(one))
        try send(other, [1])
        #expect(!hasEnded(one))
        _ = try call("send") { Glibc.send(other, [2], 1, Int32(MSG_OOB)) }
        close(other)
        var byte: UInt8 = 0
        for sent: UInt8 in [1, 2] {
            #expect(!hasEnded(one))
            #expect(recv(one, &byte, 1, 0) == 1 && byte == sent)
        }
        #expect(hasEnded(one))
    }
}

@Suite("Small files")
struct FileTests {
    @Test("are replaced as a whole")
    func replace() throws {
        let path = "/tmp/ubd-replace-\(getpid())"
        defer { unlink(path) }
        try replaceFile(path, with: Array("one".utf8), mode: 0o600)
        try replaceFile(path, with: Array("two".utf8), mode: 0o600)
        #expect(try readFile(path) == Array("two".utf8))
        #expect(throws: SystemError("read \(path)", EFBIG)) { _ = try readFile(path, limit: 2) }
    }
}

@Suite("Children")
struct ChildTests {
    @Test("whose stops are looked for keep their end for the one who asks for it")
    func endIsNotSwallowed() throws {
        var pid: pid_t = 0
        var arguments: [UnsafeMutablePointer<CChar>?] = [strdup("true"), nil]
        defer { free(arguments[0]) }
        try #require(posix_spawnp(&pid, "true", nil, nil, &arguments, nil) == 0)
        let child = try ProcessHandle(pid: pid)
        var ready = pollfd(fd: child.file.raw, events: Int16(POLLIN), revents: 0)
        #expect(poll(&ready, 1, 10_000) == 1)
        #expect(try child.pollStop() == nil)
        #expect(try child.poll() == .exited(0))
        #expect(throws: SystemError("waitid", ECHILD)) { try child.poll() }
    }
}

@Suite("Sending without waiting")
struct SendTests {
    @Test("gives up when the other side has filled the socket on purpose")
    func full() throws {
        let pair = try makeMessagePair()
        let junk = [UInt8](repeating: 0, count: 1024)
        let error = #expect(throws: SystemError.self) {
            for _ in 0..<100_000 { try send(pair.first.raw, junk, wait: false) }
        }
        #expect(error?.errno == EAGAIN)
    }
}

@Suite("The mounts of a process")
struct MountCountTests {
    @Test("are counted as the kernel counts them, without their table")
    func count() throws {
        let listed = try MountCount.table(of: getpid())
        // The table leaves out what cannot be reached from the root of the process.
        if let all = try MountCount.namespace(of: getpid()) {
            #expect(all >= listed)
        } else {
            #expect(KernelVersion.running() < KernelVersion(6, 12))
        }
        // A process with more mounts than a root is never counted as one with only a root.
        #expect(listed > 1)
        #expect(try MountCount().mounts(ofProcess: getpid()) == listed)
        #expect(throws: SystemError.self) { try MountCount().mounts(ofProcess: 0) }
    }

    @Test("are counted anew when they change between the two readings, and not known when they always do")
    func changes() {
        var looks = [(11, 10, false), (10, 11, false), (10, 10, true)].map {
            MountCount.Look(all: $0, reached: $1, isOfOneMoment: $2)
        }
        let settled = MountCount.settled { looks.removeFirst() }
        #expect(settled?.all == 10 && settled?.reached == 10)
        #expect(MountCount.settled { MountCount.Look(all: 11, reached: 10, isOfOneMoment: false) } == nil)
        #expect(MountCount.settled { nil } == nil)
    }
}
