import Glibc
import KernelABI
import Ring
import Targets

/// A disk in a file or block device. When all requests of the disk fit the direct file, reads and writes use it;
/// otherwise all of them use the buffered file (`LoopPlan.obstacle` has the reason). Everything else uses the buffered
/// file, and so does the rest of a request that the direct file refused or cut short.
struct LoopTarget: Target {
    typealias State = Request
    @inline(__always)
    static var submissions: Submissions { .loop }

    /// Bytes into the file where the disk starts.
    let start: UInt64
    let bounds: DiskBounds
    let readOnly: Bool
    let isBlockDevice: Bool
    /// The highest common operation: write, or read when the disk is read-only. All others are rare.
    private let lastCommon: UInt8
    /// IOUring.ReadWrite flags of every write.
    let writeFlags: UInt32
    /// First words of reads and writes, to the file that data normally uses.
    let readHead: UInt64
    let writeHead: UInt64

    /// Indexes into the ring's file table.
    static let bufferedFile: Int32 = 1
    static let directFile: Int32 = 2

    /// `zeroCopy`: data moves to and from the requests' registered pages.
    init(
        start: UInt64, bounds: DiskBounds, readOnly: Bool, isBlockDevice: Bool, direct: Bool, writeFlags: UInt32,
        zeroCopy: Bool = false
    ) {
        self.start = start
        self.bounds = bounds
        self.readOnly = readOnly
        lastCommon = readOnly ? UblkIOOperation.read : UblkIOOperation.write
        self.isBlockDevice = isBlockDevice
        self.writeFlags = writeFlags
        let file = direct ? LoopTarget.directFile : LoopTarget.bufferedFile
        readHead = LoopTarget.head(zeroCopy ? IOUring.Operation.readFixed : IOUring.Operation.read, file)
        writeHead = LoopTarget.head(zeroCopy ? IOUring.Operation.writeFixed : IOUring.Operation.write, file)
    }

    static func head(_ operation: UInt8, _ file: Int32) -> UInt64 {
        SubmissionEntry.head(operation: operation, flags: IOUring.EntryFlags.fixedFile, file: file)
    }

    /// The first word of a read or write on the buffered file.
    func bufferedHead(isRead: Bool) -> UInt64 {
        let normal = isRead ? readHead : writeHead
        return LoopTarget.head(UInt8(truncatingIfNeeded: normal), LoopTarget.bufferedFile)
    }

    @inline(__always)
    mutating func begin(_ tag: UInt16, _ descriptor: UblkIODescriptor, on queue: inout Queue<LoopTarget>) -> Outcome {
        let operation = descriptor.operation
        guard operation <= lastCommon, bounds.containsData(descriptor) else {
            return beginRare(tag, on: &queue)
        }
        var head = readHead
        var flags: UInt32 = 0
        if operation == UblkIOOperation.write {
            head = writeHead
            flags = writeFlags(descriptor)
        }
        queue.push(
            .transfer(
                head: head, address: queue.buffer(of: tag), length: descriptor.sectors << 9,
                offset: start &+ descriptor.startSector << 9, operationFlags: flags,
                userData: RequestKey(tag: tag, .data).rawValue, bufferIndex: tag))
        return .pending
    }

    @inline(__always)
    mutating func finish(_ key: RequestKey, result: Int32, on queue: inout Queue<LoopTarget>) -> Outcome {
        let length = queue.descriptors[Int(key.tag)].sectors << 9
        if UInt32(bitPattern: result) == length, key.isKind(.data), queue.requests[Int(key.tag)].troubled == 0 {
            return .done(length)
        }
        return finishRare(key, result: result, on: &queue)
    }

    @inline(__always)
    func writeFlags(_ descriptor: UblkIODescriptor) -> UInt32 {
        writeFlags | (descriptor.forceUnitAccess ? IOUring.ReadWrite.dataSync : 0)
    }

    /// Whether data normally uses a file opened with O_DIRECT.
    var direct: Bool { readHead >> 32 == UInt64(LoopTarget.directFile) }
}
