import Glibc
import KernelABI
import Synchronization

@testable import Ring
@testable import Worker

/// A submission entry as the kernel would read it.
struct Submission: Equatable {
    let operation: UInt8
    let flags: UInt8
    let file: Int32
    let offset: UInt64
    let address: UInt64
    let length: UInt32
    let bufferIndex: UInt16
    let userData: UInt64
    /// Of a command.
    let payload: UInt64

    private var isRead: Bool { operation == IOUring.Operation.read || operation == IOUring.Operation.readFixed }
    private var isWrite: Bool { operation == IOUring.Operation.write || operation == IOUring.Operation.writeFixed }

    var movesData: Bool { isRead || isWrite }

    /// It touches nothing but its request's buffer and, in the right file, the disk.
    func check(_ disk: Disk, buffer: UInt64, tag: UInt16) {
        let isZeroes = file == RingFiles.zeroes
        require(isZeroes || file == LoopTarget.bufferedFile || disk.direct && file == LoopTarget.directFile, "\(self)")
        require(!disk.isNull || isZeroes, "a null disk has no file: \(self)")
        require(isRead || !isZeroes, "only read from /dev/zero: \(self)")
        require(isRead || operation == IOUring.Operation.fsync || !disk.readOnly, "a read-only disk: \(self)")
        switch operation {
        case IOUring.Operation.read, IOUring.Operation.write: require(!disk.zeroCopy, "\(self)")
        case IOUring.Operation.readFixed, IOUring.Operation.writeFixed:
            require(disk.zeroCopy && bufferIndex == tag, "\(self)")
        case IOUring.Operation.fsync: return
        case IOUring.Operation.fallocate:
            let modes = [FALLOC_FL_PUNCH_HOLE, FALLOC_FL_ZERO_RANGE].map { UInt32($0 | FALLOC_FL_KEEP_SIZE) }
            require(modes.contains(length) && disk.isBlockDevice, "\(self)")
            return checkRange(disk, offset, address)
        case IOUring.Operation.uringCommand:
            require(offset == UInt64(IOUring.blockDiscard) && disk.isBlockDevice, "\(self)")
            return checkRange(disk, address, payload)
        default: return require(false, "no operation of a target: \(self)")
        }
        let bytes = UInt64(length)
        require(address >= buffer && bytes <= UInt64(Disk.maxIOBytes), "outside of the buffer: \(self)")
        require(address - buffer <= UInt64(Disk.maxIOBytes) - bytes, "outside of the buffer: \(self)")
        if !isZeroes { checkRange(disk, offset, bytes) }
    }

    /// An empty range is nowhere; the kernel refuses it.
    private func checkRange(_ disk: Disk, _ offset: UInt64, _ bytes: UInt64) {
        if bytes == 0 { return }
        require(offset >= disk.start && bytes <= disk.size, "outside of the disk: \(self)")
        require(offset - disk.start <= disk.size - bytes, "outside of the disk: \(self)")
    }
}

extension Ring {
    /// What was pushed and not taken yet.
    func pendingEntries() -> [Submission] {
        (0..<untaken).map { index in
            let slot = submissionEntries + Int((taken &+ index) % (capacity + 1)) * MemoryLayout<SubmissionEntry>.stride
            return Submission(
                operation: slot.load(as: UInt8.self), flags: slot.load(fromByteOffset: 1, as: UInt8.self),
                file: slot.load(fromByteOffset: 4, as: Int32.self),
                offset: slot.load(fromByteOffset: 8, as: UInt64.self),
                address: slot.load(fromByteOffset: 16, as: UInt64.self),
                length: slot.load(fromByteOffset: 24, as: UInt32.self),
                bufferIndex: slot.load(fromByteOffset: 40, as: UInt16.self),
                userData: slot.load(fromByteOffset: 32, as: UInt64.self),
                payload: slot.load(fromByteOffset: 48, as: UInt64.self))
        }
    }

    /// Where the kernel puts completions.
    var completionMemory:
        (tail: UnsafeMutablePointer<Atomic<UInt32>>, entries: UnsafeMutablePointer<CompletionEntry>, mask: UInt32)
    {
        (completionTail, UnsafeMutablePointer(mutating: completionEntries), completionMask)
    }
}
