import CShims
import Glibc
import KernelABI
import SystemCalls
import Targets
import WorkerProtocol

extension CryptTarget: ServedTarget {
    static var manifest: TargetManifest { .crypt }

    static func loadLibraries() { SectorCipher.loadLibrary() }

    /// Opens the target on the client's files: the volume's, and the volume key in memory.
    static func open(
        _ launch: LaunchMessage, files: [ClientFile], kernel: KernelVersion, canWait _: Bool
    ) throws(WorkerFailure) -> OpenTarget {
        let file = files[0]
        let block = launch.options.blockSize ?? 512
        try checkBlockSize(block, minimum: 512)
        guard !file.isBlockDevice else { throw WorkerFailure(.geometry, errno: ENOTBLK) }
        let readOnly = launch.flags.contains(.readOnly) || !file.isWritable
        let size = try size(of: file, launch, block: block)
        let ciphers = try ciphers(files[1], count: Int(launch.queues))
        var geometry = Geometry(size: size, logicalBlock: block, physicalBlock: max(block, 4096))
        geometry.attributes.insert(.buffered)
        if readOnly { geometry.attributes.insert(.readOnly) }
        if !file.isWritable { geometry.attributes.insert(.fileReadOnly) }
        if !readOnly {
            geometry.attributes.insert(.volatileCache)
            if !file.isOnOtherFileSystem { geometry.attributes.insert(.fua) }
        }
        geometry.file = file.identity
        let target = CryptTarget(
            start: launch.options.offset, bounds: DiskBounds(size: size, maxIOBytes: launch.maxIOBytes),
            firstSector: launch.options.firstSector, blockSize: block, readOnly: readOnly,
            // The owner shares the open file and could set O_APPEND on it at any time.
            writeFlags: kernel >= KernelVersion(6, 9) ? IOUring.ReadWrite.noAppend : 0, ciphers: ciphers)
        var open = OpenTarget(served: target, geometry: geometry, files: [file.descriptor])
        if readOnly {
            open.unneeded = [IOUring.Operation.write, IOUring.Operation.fsync]
        } else {
            open.fileSizeLimit = launch.options.offset + size
        }
        open.claim = ByteClaim(file, launch, size: size, readOnly: readOnly)
        return open
    }

    private static func size(
        of file: ClientFile, _ launch: LaunchMessage, block: UInt32
    ) throws(WorkerFailure) -> UInt64 {
        let bytes = UInt64(max(0, file.status.st_size))
        guard bytes > 0 else { throw WorkerFailure(.fileEmpty) }
        guard launch.options.offset < bytes else { throw WorkerFailure(.offsetBeyondEnd, detail: bytes) }
        let available = bytes - launch.options.offset
        let wanted = launch.options.size ?? available
        guard wanted <= available else { throw WorkerFailure(.sizeBeyondEnd, detail: available) }
        // dm-crypt refuses such a volume, too.
        guard wanted.isMultiple(of: UInt64(block)) else {
            throw WorkerFailure(.geometry, errno: EINVAL, detail: wanted)
        }
        return wanted
    }

    /// Expands the key, once for each queue: a cipher's state is one thread's. Nothing but the expanded keys stays: the copy is
    /// wiped, and the descriptor closed.
    private static func ciphers(_ secret: ClientFile, count: Int) throws(WorkerFailure) -> [SectorCipher] {
        let length = Int(clamping: secret.status.st_size)
        guard SectorCipher.keyLengths.contains(length) else {
            throw WorkerFailure(.geometry, errno: EKEYREJECTED, detail: UInt64(max(0, secret.status.st_size)))
        }
        // Mapped and not read, so that there is no copy. mlockall(2) keeps it from swap.
        let memory = mmap(nil, length, PROT_READ, MAP_PRIVATE, secret.descriptor, 0)
        guard let memory, memory != MAP_FAILED else { throw WorkerFailure(.memory, errno: errno) }
        madvise(memory, length, Int32(MADV_DONTDUMP))
        defer {
            munmap(memory, length)
            close(secret.descriptor)
        }
        var ciphers: [SectorCipher] = []
        for _ in 0..<count {
            guard let cipher = SectorCipher(key: UnsafeRawBufferPointer(start: memory, count: length)) else {
                throw WorkerFailure(.geometry, errno: EKEYREJECTED)
            }
            ciphers.append(cipher)
        }
        return ciphers
    }
}
