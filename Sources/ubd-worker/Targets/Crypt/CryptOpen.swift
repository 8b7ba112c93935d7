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
        let ciphers = try ciphers(files[1], launch)
        var geometry = Geometry(size: size, logicalBlock: block, physicalBlock: max(block, 4096))
        geometry.attributes.insert(.buffered)
        if launch.options.size == nil, launch.options.offset + size != UInt64(file.status.st_size) {
            geometry.attributes.insert(.sizeRoundedDown)
        }
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
        // A part of a sector cannot be decrypted, so it is left out; dm-crypt refuses such a volume.
        let whole = wanted - wanted % UInt64(block)
        guard whole > 0 else { throw WorkerFailure(.smallerThanBlock, detail: UInt64(block)) }
        return whole
    }

    /// Expands the key, once for each queue: a cipher's state is one thread's. Nothing but the expanded keys stays: the copy is
    /// wiped, and the descriptor closed.
    private static func ciphers(_ secret: ClientFile, _ launch: LaunchMessage) throws(WorkerFailure) -> [SectorCipher] {
        let size = UInt64(clamping: secret.status.st_size)
        guard SectorCipher.keyLengths.contains(Int(clamping: size)) else {
            throw WorkerFailure(.secretUnusable, errno: EINVAL, detail: size)
        }
        // Read and not mapped: its owner could make a file that is not sealed shorter, and a mapping would then kill this
        // process. mlockall(2) keeps the copy from swap.
        let memory = UnsafeMutableRawBufferPointer.allocate(byteCount: Int(size), alignment: 16)
        defer {
            explicit_bzero(memory.baseAddress!, memory.count)
            memory.deallocate()
            close(secret.descriptor)
        }
        guard pread(secret.descriptor, memory.baseAddress!, memory.count, 0) == memory.count else {
            throw WorkerFailure(.secretUnusable, errno: EIO, detail: size)
        }
        let key = UnsafeRawBufferPointer(memory)
        if let wanted = launch.options.keyMark, SectorCipher.mark(key) != wanted { throw WorkerFailure(.secretDiffers) }
        var ciphers: [SectorCipher] = []
        for _ in 0..<launch.queues {
            // For example because both halves are equal.
            guard let cipher = SectorCipher(key: key) else {
                throw WorkerFailure(.secretUnusable, errno: EKEYREJECTED, detail: size)
            }
            ciphers.append(cipher)
        }
        return ciphers
    }
}
