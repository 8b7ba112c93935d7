import CShims
import Glibc
import SystemCalls
import WorkerProtocol

/// The alignment that a file's direct I/O needs, in bytes.
struct DirectNeeds: Equatable, Sendable {
    /// For offset and length.
    var block: UInt32
    /// For the address of the memory.
    var memory: UInt32 = 512
}

/// One of the client's files that was checked and may back a device. The client is not trusted and shares the open
/// file: it can damage its own disk, but must not be able to crash the worker.
package struct ClientFile {
    /// Stays open as long as the process lives.
    package let descriptor: Int32
    let status: stat
    /// O_RDONLY, O_RDWR and so on, from F_GETFL.
    let flags: Int32
    /// nil for a block device.
    let fileSystem: FileSystem?

    /// The file system is not known to be reliable, such as FUSE: results of reads and writes are checked where
    /// possible, and features that cannot be checked are not used.
    var isOnOtherFileSystem: Bool { fileSystem?.kind == .other }
    var isBlockDevice: Bool { status.st_mode & S_IFMT == S_IFBLK }
    var isWritable: Bool { flags & O_ACCMODE == O_RDWR }

    /// Refuses a file that cannot, or must not, back a device. `index` is the file's place in the client's message.
    init(checking descriptor: Int32, index: Int, _ launch: LaunchMessage) throws(WorkerFailure) {
        let detail = UInt64(index)
        func refuse(_ step: WorkerFailure.Step, _ errno: Int32 = 0) -> WorkerFailure {
            WorkerFailure(step, errno: errno, detail: detail)
        }
        self.descriptor = descriptor
        flags = fcntl(descriptor, F_GETFL)
        if flags < 0 { throw refuse(.fileStatus, errno) }
        var status = stat()
        if fstat(descriptor, &status) != 0 { throw refuse(.fileStatus, errno) }
        self.status = status

        // O_PATH first: the other checks are meaningless for such a descriptor.
        if flags & O_PATH != 0 { throw refuse(.fileIsPathOnly) }
        if launch.target.role(ofDescriptor: index) == .sockets {
            // What kind of socket is looked at by the target (ClientSocket).
            guard status.st_mode & S_IFMT == S_IFSOCK else { throw refuse(.fileIsNoSocket) }
            fileSystem = nil
            return
        }
        switch status.st_mode & S_IFMT {
        case S_IFREG, S_IFBLK: break
        case S_IFDIR: throw refuse(.fileIsDirectory)
        case S_IFIFO: throw refuse(.fileIsPipe)
        case S_IFSOCK: throw refuse(.fileIsSocket)
        case S_IFCHR: throw refuse(.fileIsCharacterDevice)
        // Files without a type: eventfd, epoll, pidfd, io_uring, …
        default: throw refuse(.fileIsOther)
        }
        if flags & O_APPEND != 0 { throw refuse(.fileIsAppendOnly) }
        if flags & O_ACCMODE == O_WRONLY || flags & O_ACCMODE == O_ACCMODE { throw refuse(.fileIsWriteOnly) }
        // A block device's data is not on the file system of its node.
        if status.st_mode & S_IFMT == S_IFBLK {
            fileSystem = nil
        } else {
            var system = statfs()
            // May wait for a FUSE or network server for ever: that is why the worker does it and not the broker.
            if fstatfs(descriptor, &system) != 0 { throw refuse(.fileStatus, errno) }
            let found = FileSystem(
                magic: UInt32(truncatingIfNeeded: system.f_type), device: UInt64(status.st_dev),
                details: ClientFile.details(of: descriptor, UInt32(STATX_BTIME)))
            fileSystem = found
            switch found.kind {
            case .local: break
            case .kernel: throw WorkerFailure(.fileOnKernelFileSystem, detail: found.code)
            case .network:
                if !launch.flags.contains(.allowNetwork) { throw WorkerFailure(.fileOnNetwork, detail: found.code) }
            case .other:
                if !launch.flags.contains(.allowOther) {
                    throw WorkerFailure(.fileOnOtherFileSystem, detail: found.code)
                }
            }
        }
    }

    /// The direct file must be the buffered one, opened again with O_DIRECT and for the same use.
    func checkIsSecondOpen(of first: ClientFile) throws(WorkerFailure) {
        let same =
            status.st_mode & S_IFMT == first.status.st_mode & S_IFMT && flags & O_ACCMODE == first.flags & O_ACCMODE
            // Two nodes of one device are the same file; two names of one inode as well.
            && (isBlockDevice
                ? status.st_rdev == first.status.st_rdev
                : status.st_dev == first.status.st_dev && status.st_ino == first.status.st_ino)
        guard same, flags & O_DIRECT != 0, first.flags & O_DIRECT == 0 else {
            throw WorkerFailure(.filesDiffer, detail: 1)
        }
    }

    /// The identity of the file.
    var identity: FileIdentity {
        if isBlockDevice { return FileIdentity(device: UInt64(status.st_rdev)) }
        var identity = FileIdentity(device: UInt64(status.st_dev), inode: UInt64(status.st_ino))
        let mask = UInt32(STATX_BTIME)
        if let more = ClientFile.details(of: descriptor, mask), more.stx_mask & mask != 0 {
            identity.born = UInt64(bitPattern: more.stx_btime.tv_sec) &* 1_000_000_000 &+ UInt64(more.stx_btime.tv_nsec)
        }
        return identity
    }

    /// statx(2) of an open file; nil when it fails.
    private static func details(of descriptor: Int32, _ mask: UInt32) -> statx? {
        var result = statx()
        return statx(descriptor, "", AT_EMPTY_PATH, mask, &result) == 0 ? result : nil
    }

    /// An ioctl of block devices that fills in one number (linux/fs.h).
    func blockQuery<T: FixedWidthInteger>(_ request: UInt, _ initial: T) throws(SystemError) -> T {
        var value = initial
        try call("block device ioctl") { ioctl(descriptor, request, &value) }
        return value
    }

    /// The alignment for direct I/O on the file; nil when it does not support it.
    func directNeeds(smallest: UInt32) -> DirectNeeds? {
        let mask = UInt32(STATX_DIOALIGN)
        if let result = ClientFile.details(of: descriptor, mask), result.stx_mask & mask != 0 {
            if result.stx_dio_offset_align == 0 { return nil }
            return DirectNeeds(block: max(result.stx_dio_offset_align, smallest), memory: result.stx_dio_mem_align)
        }
        return probeDirectBlock(smallest: smallest).map { DirectNeeds(block: $0, memory: 512) }
    }

    /// For file systems that do not report it: the smallest block that can be read. Reading never changes the file.
    private func probeDirectBlock(smallest: UInt32) -> UInt32? {
        var memory: UnsafeMutableRawPointer?
        guard posix_memalign(&memory, 4096, 4096) == 0, let memory else { return nil }
        defer { free(memory) }
        var unit = max(512, smallest)
        while unit <= 4096 {
            if pread(descriptor, memory, Int(unit), off_t(unit)) >= 0 { return unit }
            if errno != EINVAL { return nil }
            unit *= 2
        }
        return nil
    }
}
