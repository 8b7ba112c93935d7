import BrokerInterface
import Foundation
import Glibc
import SystemCalls
import Targets
import Testing

@testable import ubd

@Suite("The file behind a device")
struct BackingFileTests {
    private func failure(_ path: String, _ options: DeviceOptions = DeviceOptions()) -> CommandFailure? {
        do {
            _ = try BackingFile.open(path, readOnly: false, options: options)
            return nil
        } catch { return error }
    }

    @Test("is a regular file or a block device; anything else is named and refused without waiting")
    func kinds() throws {
        let folder = TemporaryFolder()
        mkfifo(folder.path + "/fifo", 0o666)
        let socket = socket(AF_UNIX, Int32(SOCK_STREAM.rawValue), 0)
        defer { close(socket) }
        var address = sockaddr_un()
        address.sun_family = sa_family_t(AF_UNIX)
        withUnsafeMutableBytes(of: &address.sun_path) { $0.copyBytes(from: Array((folder.path + "/socket").utf8)) }
        withUnsafePointer(to: &address) {
            _ = bind(socket, __CONST_SOCKADDR_ARG(__sockaddr_un__: $0), socklen_t(MemoryLayout<sockaddr_un>.size))
        }
        for (path, kind) in [
            (folder.path, "a directory"), (folder.path + "/fifo", "a FIFO"), (folder.path + "/socket", "a socket"),
            ("/dev/null", "a character device"), ("/dev/tty", "a character device"),
        ] {
            let failure = try #require(self.failure(path))
            #expect(failure.message == "\(path) is \(kind)")
            #expect(failure.status == .usage)
        }
    }

    @Test("must be there and have a size that holds the device")
    func sizes() throws {
        let folder = TemporaryFolder()
        #expect(failure(folder.path + "/none")?.status == .usage)
        #expect(failure("")?.status == .usage)
        #expect(failure(folder.file("empty", bytes: 0))?.message.hasSuffix("is empty") == true)
        let small = folder.file("small", bytes: 511)
        #expect(failure(small)?.message == "\(small) has 511 bytes, the device needs 512 from offset 0 on")
        let file = folder.file("file", bytes: 8192)
        var options = DeviceOptions()
        options.offset = 4096
        options.size = 4096
        #expect(failure(file, options) == nil)
        options.size = 4608
        #expect(failure(file, options)?.message.contains("needs 4608 from offset 4096") == true)
        options.offset = .max
        #expect(failure(file, options)?.status == .usage)
    }

    @Test("that can not be written makes a read-only device, and the user is told")
    func readOnly() throws {
        let folder = TemporaryFolder()
        let file = folder.file("1.img", bytes: 4096, mode: 0o444)
        chmod(folder.path, 0o755)
        try asNobody {
            let backing = try BackingFile.open(file, readOnly: false, options: DeviceOptions())
            let readOnly = backing.readOnly
            #expect(readOnly)
            let notices = backing.notices
            #expect(notices.map(\.code) == ["read-only"])
            #expect(notices.first?.message == "\(file) is not writable, so the device is read-only")
            let numbers = backing.numbers
            for fd in numbers { #expect(fcntl(fd, F_GETFL) & O_ACCMODE == O_RDONLY) }
        }
        // A read-only device that was asked for needs no note.
        let backing = try BackingFile.open(file, readOnly: true, options: DeviceOptions())
        let readOnly = backing.readOnly
        let notices = backing.notices
        #expect(readOnly && notices.isEmpty)
    }

    @Test("that may not be read is refused with status 3")
    func unreadable() throws {
        let folder = TemporaryFolder()
        let file = folder.file("secret", bytes: 4096, mode: 0o600)
        chmod(file, 0)
        chmod(folder.path, 0o755)
        asNobody {
            let failure = self.failure(file)
            #expect(failure?.status == .notPermitted)
            #expect(failure?.message == "\(file): Permission denied")
        }
    }

    @Test(
        "that takes no direct I/O is used through the page cache, and the user is told",
        .enabled(if: access("/sys/kernel/uevent_seqnum", R_OK) == 0, "/sys is not mounted"))
    func noDirectIO() throws {
        // A file of sysfs is regular, has a size, refuses O_DIRECT (EINVAL) and here also writing (EACCES).
        let backing = try BackingFile.open("/sys/kernel/uevent_seqnum", readOnly: false, options: DeviceOptions())
        let numbers = backing.numbers
        let notices = backing.notices
        #expect(numbers.count == 1)
        #expect(notices.map(\.code) == ["read-only", "buffered"])
    }

    /// Fails at once when the bytes are claimed.
    private static var impatient: FileClaim { FileClaim(patience: 0, pause: { _ in }) }

    /// The message for a second device of the same file while a first one has `bytes` from `offset` on.
    private func second(
        _ path: String, first: (offset: UInt64, size: UInt64?), readOnly: Bool = false,
        second: (offset: UInt64, size: UInt64?), secondReadOnly: Bool = false, shared: Bool = false
    ) throws -> CommandFailure? {
        var (one, two) = (DeviceOptions(), DeviceOptions())
        (one.offset, one.size) = first
        (two.offset, two.size) = second
        let holder = try BackingFile.open(path, readOnly: readOnly, options: one, claim: Self.impatient)
        defer { withExtendedLifetime(holder.numbers) {} }
        do {
            _ = try BackingFile.open(
                path, readOnly: secondReadOnly, options: two, shared: shared, claim: Self.impatient)
            return nil
        } catch { return error }
    }

    @Test("is a device's own: who wants the same bytes, by whatever name, is refused while it is there")
    func claimed() throws {
        let folder = TemporaryFolder()
        let file = folder.file("1.img", bytes: 16384)
        #expect(link(file, folder.path + "/2.img") == 0)
        let whole: (offset: UInt64, size: UInt64?) = (0, nil)
        let failure = try #require(try second(file, first: whole, second: whole))
        #expect(failure.status == .busy && failure.name == "FileInUse")
        #expect(failure.message == "\(file) is in use: another device or program has locked it")
        #expect(failure.remedy.contains("--shared"))
        let holder = try BackingFile.open(file, readOnly: false, options: DeviceOptions())
        #expect(throws: CommandFailure.self) {
            _ = try BackingFile.open(
                folder.path + "/2.img", readOnly: true, options: DeviceOptions(), claim: Self.impatient)
        }
        withExtendedLifetime(holder.numbers) {}
    }

    @Test("may have several devices that only read, or that have other bytes, or that are asked for as shared")
    func notClaimed() throws {
        let folder = TemporaryFolder()
        let file = folder.file("1.img", bytes: 16384)
        let whole: (offset: UInt64, size: UInt64?) = (0, nil)
        #expect(try second(file, first: whole, readOnly: true, second: whole, secondReadOnly: true) == nil)
        #expect(try second(file, first: (0, 8192), second: (8192, nil)) == nil)
        #expect(try second(file, first: (4096, 4096), second: (0, 4096)) == nil)
        #expect(try second(file, first: whole, second: whole, shared: true) == nil)
        let overlapping = try #require(try second(file, first: (0, 8192), second: (4096, 8192)))
        #expect(overlapping.message.hasSuffix("has locked these bytes of it"))
        #expect(try second(file, first: whole, readOnly: true, second: whole) != nil)
        #expect(try second(file, first: whole, second: whole, secondReadOnly: true) != nil)
        // Afterwards the file is free again.
        #expect(failure(file) == nil)
    }

    @Test("that somebody who only reads has locked is refused with that reason, and with what keeps readers out")
    func lockedByReader() throws {
        let folder = TemporaryFolder()
        let file = folder.file("1.img", bytes: 16384)
        let whole: (offset: UInt64, size: UInt64?) = (0, nil)
        let failure = try #require(try second(file, first: whole, readOnly: true, second: whole))
        #expect(failure.message.contains("which only reads, has locked it against writers"))
        #expect(failure.remedy.contains("chmod go-r") && failure.remedy.contains("--shared"))
    }

    @Test("that is shared while another has it is said not to be kept from a third")
    func unclaimed() throws {
        let folder = TemporaryFolder()
        let file = folder.file("1.img", bytes: 16384)
        func codes() throws -> [String] {
            try BackingFile.open(file, readOnly: false, options: DeviceOptions(), shared: true).notices.map(\.code)
        }
        #expect(!(try codes()).contains("shared"))
        let holder = try BackingFile.open(file, readOnly: false, options: DeviceOptions())
        #expect(try codes().filter { $0 == "shared" } == ["shared"])
        withExtendedLifetime(holder.numbers) {}
    }

    @Test("is waited for while a device that was just deleted lets go of it")
    func patience() throws {
        let folder = TemporaryFolder()
        let file = folder.file("1.img", bytes: 4096)
        let holder = Glibc.open(file, O_RDWR)
        var lock = Glibc.flock()
        lock.l_type = Int16(F_WRLCK)
        #expect(fcntl(holder, F_OFD_SETLK, &lock) == 0)
        var pauses = 0
        let claim = FileClaim(patience: 2000) { milliseconds in
            #expect(milliseconds == 20)
            pauses += 1
            if pauses == 5 { close(holder) }
        }
        _ = try BackingFile.open(file, readOnly: false, options: DeviceOptions(), claim: claim)
        #expect(pauses == 5)
    }

    @Test("a file whose locks nobody can tell is not taken for one without locks")
    func unknownLocks() throws {
        let folder = TemporaryFolder()
        let file = folder.file("1.img", bytes: 4096)
        // EBADF.
        let opened = try FileDescriptor.open(file, O_PATH)
        let failure = #expect(throws: CommandFailure.self) {
            try FileClaim().lock(opened, file, readOnly: false, DeviceOptions())
        }
        #expect(failure?.name == "FileClaimUnknown")
        #expect(failure?.line.contains("--shared") == true)
    }

    /// Runs the body with the rights of nobody. setfsuid(2) is per thread, so other tests keep theirs; without being
    /// root this changes nothing and the files' modes alone decide.
    private func asNobody<Result>(_ body: () throws -> Result) rethrows -> Result {
        // The Glibc module leaves <sys/fsuid.h> out.
        typealias SetFSUID = @convention(c) (uid_t) -> Int32
        let setfsuid = unsafeBitCast(dlsym(nil, "setfsuid"), to: SetFSUID.self)
        let before = setfsuid(65534)
        defer { _ = setfsuid(uid_t(before)) }
        return try body()
    }
}
