import CShims
import Glibc
import SystemCalls
import Testing
import WorkerProtocol

@testable import Worker

/// Real files of every kind that a client could send.
@Suite("A client's file")
struct ClientFileTests {
    private func check(
        // The tests' own files may be on any file system that the host has at /tmp.
        _ descriptor: Int32, index: Int = 0, flags: LaunchMessage.Flags = [.allowOther]
    ) throws(WorkerFailure) -> ClientFile {
        try ClientFile(
            checking: descriptor, index: index,
            LaunchMessage(target: .loop, queues: 1, depth: 1, maxIOBytes: 4096, flags: flags))
    }

    private func refusal(_ descriptor: Int32) -> WorkerFailure.Step? {
        defer { close(descriptor) }
        do {
            _ = try check(descriptor)
            return nil
        } catch {
            return error.step
        }
    }

    @Test("that is a regular file is taken, writable or not")
    func regular() throws {
        let file = try TestFile(bytes: 4096)
        #expect(try check(file.file.raw).isWritable)
        let readable = try FileDescriptor.open(file.path, O_RDONLY)
        #expect(try !check(readable.raw).isWritable)
        let memory = FileDescriptor(owning: try call("memfd_create") { memfd_create("x", 0) })
        #expect(try !check(memory.raw).isBlockDevice)
    }

    @Test("of a kind that holds no data is refused by the name of its kind")
    func kinds() throws {
        #expect(refusal(open("/tmp", O_RDONLY)) == .fileIsDirectory)
        var ends: [Int32] = [0, 0]
        #expect(pipe(&ends) == 0)
        #expect(refusal(ends[0]) == .fileIsPipe)
        #expect(refusal(ends[1]) == .fileIsPipe)
        #expect(refusal(socket(AF_UNIX, Int32(SOCK_STREAM.rawValue), 0)) == .fileIsSocket)
        #expect(refusal(socket(AF_INET, Int32(SOCK_STREAM.rawValue), 0)) == .fileIsSocket)
        #expect(refusal(open("/dev/null", O_RDWR)) == .fileIsCharacterDevice)
        #expect(refusal(open("/dev/ptmx", O_RDWR | O_NOCTTY)) == .fileIsCharacterDevice)
        #expect(refusal(eventfd(0, 0)) == .fileIsOther)
        #expect(refusal(epoll_create1(0)) == .fileIsOther)
        #expect(refusal(timerfd_create(CLOCK_MONOTONIC, 0)) == .fileIsOther)
    }

    @Test("that is a FIFO with a name is refused without waiting for its other end")
    func fifo() throws {
        let path = "/tmp/ubd-worker-fifo-\(getpid())"
        #expect(mkfifo(path, 0o600) == 0)
        defer { unlink(path) }
        #expect(refusal(open(path, O_RDWR)) == .fileIsPipe)
    }

    @Test("opened in a way that does not serve is refused")
    func flags() throws {
        let file = try TestFile(bytes: 4096)
        #expect(refusal(open(file.path, O_PATH)) == .fileIsPathOnly)
        #expect(refusal(open("/tmp", O_PATH)) == .fileIsPathOnly)
        #expect(refusal(open(file.path, O_RDWR | O_APPEND)) == .fileIsAppendOnly)
        #expect(refusal(open(file.path, O_WRONLY)) == .fileIsWriteOnly)
        // Access mode 3: neither reading nor writing, only ioctl(2).
        #expect(refusal(open(file.path, 3)) == .fileIsWriteOnly)
        #expect(refusal(-1) == .fileStatus)
    }

    @Test("of the kernel's own file systems is refused")
    func kernelFiles() throws {
        #expect(refusal(open("/proc/self/maps", O_RDONLY)) == .fileOnKernelFileSystem)
        #expect(refusal(open("/proc/self/mem", O_RDWR)) == .fileOnKernelFileSystem)
        #expect(refusal(open("/sys/kernel/mm/transparent_hugepage/enabled", O_RDONLY)) == .fileOnKernelFileSystem)
        // An inode of nsfs is a regular file by its mode.
        #expect(refusal(open("/proc/self/ns/mnt", O_RDONLY)) == .fileOnKernelFileSystem)
    }

    @Test("is refused with its place in the client's message")
    func index() {
        #expect(throws: WorkerFailure(.fileIsDirectory, detail: 1)) {
            let directory = open("/tmp", O_RDONLY)
            defer { close(directory) }
            _ = try check(directory, index: 1)
        }
    }

    @Test("that is the second must be the first, opened again with O_DIRECT for the same use")
    func second() throws {
        let file = try TestFile(bytes: 4096)
        let other = try TestFile(bytes: 4096)
        let first = try check(file.file.raw)
        func differs(_ path: String, _ flags: Int32) throws -> Bool {
            let again = try FileDescriptor.open(path, flags)
            do {
                try check(again.raw, index: 1).checkIsSecondOpen(of: first)
                return false
            } catch {
                #expect(error == WorkerFailure(.filesDiffer, detail: 1))
                return true
            }
        }
        #expect(try !differs(file.path, O_RDWR | O_DIRECT))
        #expect(try differs(file.path, O_RDWR))
        #expect(try differs(file.path, O_RDONLY | O_DIRECT))
        #expect(try differs(other.path, O_RDWR | O_DIRECT))
    }

    @Test("tells its direct alignment, or that it has none")
    func alignment() throws {
        let file = try TestFile(bytes: 8192)
        let direct = try FileDescriptor.open(file.path, O_RDWR | O_DIRECT)
        let alignment = try #require(try check(direct.raw).directNeeds(smallest: 512)?.block)
        #expect([512, 1024, 2048, 4096].contains(alignment))
        #expect(try check(direct.raw).directNeeds(smallest: 4096)?.block == 4096)
    }

    @Test("of the kernel's own file systems is refused whatever the rights, with the file system's number")
    func noRight() {
        #expect(throws: WorkerFailure(.fileOnKernelFileSystem, detail: 0x9fa0)) {
            let file = open("/proc/version", O_RDONLY)
            defer { close(file) }
            _ = try check(file, flags: [.allowOther, .allowNetwork])
        }
    }
}
