import KernelABI
import Ring
import SystemCalls

/// The memory of batch mode (Linux 7.0, BATCH_IO): buffers that the driver fills with the tags of new requests, and the
/// list of requests to commit. Allocated before the ring is sealed; never grows.
struct Batch: ~Copyable {
    /// Bytes of one buffer for tags: the most that the driver puts into one (MAX_NR_TAG, ublk_drv.c).
    static let bytesPerBuffer: UInt32 = 256
    /// Buffers are returned at every wake-up, so a few are enough. When they run out, the driver keeps the requests and
    /// ends the fetch (ENOBUFS); the loop starts it again.
    static let mostBuffers: UInt32 = 64

    /// Buffers for tags; a power of two.
    let buffers: UInt32
    private let memory: Mapping
    /// The ring of provided buffers, tags, and list follow each other in the memory.
    private let tags: UnsafeMutableRawPointer
    private let list: UnsafeMutableRawPointer
    /// Bytes of the list that are written, and the part of them for which the ring has a command.
    private var written = 0
    private var pushed = 0
    /// Lists that the ring has and the kernel has not taken yet: each completes as soon as it is taken.
    private(set) var lists: UInt32 = 0
    /// Buffers returned to the kernel so far.
    private var given: UInt16 = 0
    /// Bytes of one element: 16 with a buffer's address, 8 without.
    let elementBytes: Int
    /// First half of struct ublk_batch_io of a list, but for the count.
    private let listPayload: UInt64

    /// `depth`: the most requests in a list.
    init(queue: UInt16, depth: UInt16, zeroCopy: Bool) throws(SystemError) {
        var buffers: UInt32 = 1
        while buffers < min(UInt32(depth), Batch.mostBuffers) { buffers *= 2 }
        let ringBytes = Int(buffers) * 16
        let tagBytes = Int(buffers * Batch.bytesPerBuffer)
        // One word more than the list: an element is always written with an address, also where it has none.
        memory = try Mapping.anonymous(bytes: ringBytes + tagBytes + Int(depth) * 16 + 8)
        tags = memory.base + ringBytes
        list = tags + tagBytes
        self.buffers = buffers
        elementBytes = zeroCopy ? 8 : 16
        listPayload = UblkIOCommand.batchPayload(
            queue: queue, flags: zeroCopy ? 0 : UblkIOCommand.batchHasAddress, count: 0,
            elementBytes: zeroCopy ? 8 : 16)
    }

    /// The memory for the ring, registered before it is sealed.
    var bufferRing: UnsafeMutableRawPointer { memory.base }

    // MARK: Tags of new requests

    /// The tags in a buffer that a completion brought.
    @inline(__always)
    func tags(inBuffer buffer: UInt32) -> UnsafePointer<UInt16> {
        UnsafePointer((tags + Int(buffer &* Batch.bytesPerBuffer)).assumingMemoryBound(to: UInt16.self))
    }

    /// Puts a buffer back into the ring; the kernel sees it after `publish`.
    @inline(__always)
    mutating func give(_ buffer: UInt32) {
        // struct io_uring_buf: address, length, number. The two bytes after the number of the first one are the tail.
        let entry = memory.base + Int(UInt32(given) & (buffers &- 1)) &* 16
        entry.storeBytes(
            of: UInt64(UInt(bitPattern: tags)) &+ UInt64(buffer &* Batch.bytesPerBuffer), as: UInt64.self)
        entry.storeBytes(of: Batch.bytesPerBuffer, toByteOffset: 8, as: UInt32.self)
        entry.storeBytes(of: UInt16(truncatingIfNeeded: buffer), toByteOffset: 12, as: UInt16.self)
        given &+= 1
    }

    /// Publishes the returned buffers to the kernel.
    @inline(__always)
    func publish() {
        publishBufferTail(memory.base, given)
    }

    // MARK: Requests to commit

    /// The kernel has taken everything that was pushed. It reads a list when it takes it, so the memory of the list is
    /// free again.
    @inline(__always)
    mutating func rewind() {
        written = 0
        pushed = 0
        lists = 0
    }

    /// Adds a request to the list. Each tag is in it at most once, so there is room.
    @inline(__always)
    mutating func add(_ tag: UInt16, result: Int32, address: UInt64) {
        let element = list + written
        element.storeBytes(of: UblkIOCommand.batchElement(tag: tag, buffer: tag, result: result), as: UInt64.self)
        element.storeBytes(of: address, toByteOffset: 8, as: UInt64.self)
        written &+= elementBytes
    }

    /// The command that commits the list; nil when it is empty. Its completion reports how much of the list the driver
    /// handled, which is compared with the number in its key; a command that is not `counted` completes with 0.
    @inline(__always)
    mutating func takeList(_ command: UInt32, head: UInt64, counted: Bool = true) -> SubmissionEntry? {
        let bytes = written &- pushed
        if bytes == 0 { return nil }
        let count = UInt16(truncatingIfNeeded: elementBytes == 8 ? bytes &>> 3 : bytes &>> 4)
        let address = UInt64(UInt(bitPattern: list + pushed))
        pushed = written
        lists &+= 1
        return .command(
            head: head, command, payload: listPayload | UInt64(count) &<< 32, address: 0,
            userData: RequestKey(tag: counted ? count : 0, .list).rawValue, entryAddress: address,
            length: UInt32(truncatingIfNeeded: bytes))
    }
}
