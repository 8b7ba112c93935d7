import Glibc
import KernelABI
import Ring
import SystemCalls
import Targets

/// The plaintext of a LUKS volume's data. A read is decrypted in the request's buffer when the file's bytes are there. A write
/// is encrypted into a second buffer first: the plaintext stays as it is, also when a replacement repeats the request.
struct CryptTarget: Target {
    typealias State = Request
    @inline(__always)
    static var submissions: Submissions { .crypt }
    @inline(__always)
    static var spareBuffers: UInt32 { TargetManifest.cryptSpareBuffers }

    /// Bytes into the file where the data starts.
    let start: UInt64
    let bounds: DiskBounds
    /// Number of the disk's first 512-byte sector, for its tweak.
    let firstSector: UInt64
    /// The binary logarithm of a sector's bytes.
    let shift: Int
    let readOnly: Bool
    /// IOUring.ReadWrite flags of every write.
    let writeFlags: UInt32
    /// One for each queue.
    private let ciphers: [SectorCipher]
    /// The queue's own.
    private var cipher: SectorCipher
    /// Bytes from a request's buffer to the buffer for its ciphertext.
    private var toCiphertext: UInt64 = 0

    static let file: Int32 = 1
    private static let readHead = SubmissionEntry.head(
        operation: IOUring.Operation.read, flags: IOUring.EntryFlags.fixedFile, file: file)
    private static let writeHead = SubmissionEntry.head(
        operation: IOUring.Operation.write, flags: IOUring.EntryFlags.fixedFile, file: file)

    /// `ciphers`: one for each queue, and at least one.
    init(
        start: UInt64, bounds: DiskBounds, firstSector: UInt64, blockSize: UInt32, readOnly: Bool, writeFlags: UInt32,
        ciphers: [SectorCipher]
    ) {
        self.start = start
        self.bounds = bounds
        self.firstSector = firstSector
        shift = blockSize.trailingZeroBitCount
        self.readOnly = readOnly
        self.writeFlags = writeFlags
        self.ciphers = ciphers
        cipher = ciphers[0]
    }

    mutating func prepare(on queue: inout Queue<CryptTarget>) throws(SystemError) {
        cipher = ciphers[Int(queue.number)]
        toCiphertext = UInt64(queue.depth) * queue.bufferStride
    }

    @inline(__always)
    mutating func begin(_ tag: UInt16, _ descriptor: UblkIODescriptor, on queue: inout Queue<CryptTarget>) -> Outcome {
        guard descriptor.operation <= UblkIOOperation.write, isWhole(descriptor) else {
            return beginRare(tag, descriptor, on: &queue)
        }
        let isRead = descriptor.operation == UblkIOOperation.read
        if !isRead {
            if readOnly { return .failed(EROFS) }
            guard encrypt(tag, descriptor, on: &queue) else { return .failed(EIO) }
        }
        submit(tag, descriptor, isRead: isRead, moved: 0, on: &queue)
        return .pending
    }

    @inline(__always)
    mutating func finish(_ key: RequestKey, result: Int32, on queue: inout Queue<CryptTarget>) -> Outcome {
        let descriptor = queue.descriptors[Int(key.tag)]
        let length = descriptor.sectors << 9
        guard UInt32(bitPattern: result) == length, key.isKind(.data), queue.requests[Int(key.tag)].troubled == 0 else {
            return finishRare(key, result: result, on: &queue)
        }
        return end(key.tag, descriptor, on: &queue)
    }

    /// All bytes have moved.
    @inline(__always)
    private func end(_ tag: UInt16, _ descriptor: UblkIODescriptor, on queue: inout Queue<CryptTarget>) -> Outcome {
        let length = descriptor.sectors << 9
        if descriptor.operation == UblkIOOperation.write { return .done(length) }
        // The descriptor is in memory that is shared with the kernel, so it is checked again.
        guard isWhole(descriptor),
            cipher.decrypt(
                queue.bufferPointer(of: tag), length: Int(length), first: firstSector &+ descriptor.startSector,
                shift: shift)
        else { return .failed(EIO) }
        return .done(length)
    }

    /// The range lies on the disk, its data fits the buffer, and it consists of whole sectors of the volume.
    @inline(__always)
    private func isWhole(_ descriptor: UblkIODescriptor) -> Bool {
        let mask: UInt64 = 1 << UInt64(shift &- 9) &- 1
        return bounds.containsData(descriptor) && (descriptor.startSector | UInt64(descriptor.sectors)) & mask == 0
    }

    @inline(__always)
    private func encrypt(_ tag: UInt16, _ descriptor: UblkIODescriptor, on queue: inout Queue<CryptTarget>) -> Bool {
        let plaintext = queue.bufferPointer(of: tag)
        return cipher.encrypt(
            plaintext, to: plaintext + Int(toCiphertext), length: Int(descriptor.sectors) << 9,
            first: firstSector &+ descriptor.startSector, shift: shift)
    }

    /// Submits a read or write from byte `moved` on.
    @inline(__always)
    private func submit(
        _ tag: UInt16, _ descriptor: UblkIODescriptor, isRead: Bool, moved: UInt32, on queue: inout Queue<CryptTarget>
    ) {
        let sync = descriptor.forceUnitAccess ? IOUring.ReadWrite.dataSync : 0
        queue.push(
            .transfer(
                head: isRead ? CryptTarget.readHead : CryptTarget.writeHead,
                address: queue.buffer(of: tag) &+ (isRead ? 0 : toCiphertext) &+ UInt64(moved),
                length: descriptor.sectors << 9 &- moved,
                offset: start &+ descriptor.startSector << 9 &+ UInt64(moved),
                operationFlags: isRead ? 0 : writeFlags | sync, userData: RequestKey(tag: tag, .data).rawValue,
                bufferIndex: tag))
    }
}

// Everything but a read or write that completes at the first try: out of line, so that the common path stays small.
extension CryptTarget {
    /// A flush, and what is refused. Zeros are not written without data: the kernel then writes them as data, and they are
    /// encrypted as any other. Discards are not passed on: they would show which parts of the volume are unused.
    @inline(never)
    private mutating func beginRare(
        _ tag: UInt16, _ descriptor: UblkIODescriptor, on queue: inout Queue<CryptTarget>
    ) -> Outcome {
        switch descriptor.operation {
        case UblkIOOperation.read: return .failed(EIO)
        case UblkIOOperation.write: return .failed(readOnly ? EROFS : EIO)
        case UblkIOOperation.flush:
            // A read-only disk has no write cache, so it gets no flush; if one comes there is nothing to do.
            if readOnly { return .done(0) }
            queue.push(
                .syncData(file: CryptTarget.file, userData: RequestKey(tag: tag, .control).rawValue))
            return .pending
        default: return .failed(EOPNOTSUPP)
        }
    }

    @inline(never)
    private mutating func finishRare(
        _ key: RequestKey, result: Int32, on queue: inout Queue<CryptTarget>
    ) -> Outcome {
        let request = queue.requests + Int(key.tag)
        request.pointee.troubled = 1
        let outcome =
            key.isKind(.data) ? continueData(key.tag, result, on: &queue) : continueFlush(key.tag, result, on: &queue)
        if outcome != .pending { request.pointee.settle() }
        return outcome
    }

    private mutating func continueFlush(
        _ tag: UInt16, _ result: Int32, on queue: inout Queue<CryptTarget>
    ) -> Outcome {
        switch result {
        case 0...: return .done(0)
        case -EINTR, -EAGAIN:
            guard queue.requests[Int(tag)].mayRepeat() else { return .failed(EIO) }
            queue.push(.syncData(file: CryptTarget.file, userData: RequestKey(tag: tag, .control).rawValue))
            return .pending
        default: return .fileFailed(-result)
        }
    }

    /// A read or write that did not move all of its bytes at the first try: continues where it stopped, or ends as an error. The
    /// bytes are decrypted when all are there.
    private func continueData(_ tag: UInt16, _ result: Int32, on queue: inout Queue<CryptTarget>) -> Outcome {
        let request = queue.requests + Int(tag)
        let descriptor = queue.descriptors[Int(tag)]
        let isRead = descriptor.operation == UblkIOOperation.read
        let length = descriptor.sectors << 9
        guard isWhole(descriptor), isRead || !readOnly, request.pointee.moved < length else { return .failed(EIO) }
        switch result {
        case 1...:
            guard let isAll = request.pointee.moved(result, of: length) else { return .failed(EIO) }
            if isAll { return end(tag, descriptor, on: &queue) }
        case -EINTR, -EAGAIN:
            guard request.pointee.mayRepeat() else { return .failed(EIO) }
        // The file has become shorter than the volume: what is missing is not known, and zeros would decrypt to garbage.
        case 0: return .failed(EIO)
        default: return .fileFailed(-result)
        }
        submit(tag, descriptor, isRead: isRead, moved: request.pointee.moved, on: &queue)
        return .pending
    }
}
