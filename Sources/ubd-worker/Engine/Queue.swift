import Glibc
import KernelABI
import Ring
import SystemCalls
import WorkerProtocol

/// What is remembered of a request while a target works on it, beyond the kernel's descriptor of it, which stays valid
/// until the commit. All zeros unless something out of the ordinary happens: the common path only looks at `troubled`.
struct Request {
    /// 1 from the moment something went otherwise than planned to the end of the request.
    var troubled: UInt32 = 0
    /// Bytes moved so far.
    var moved: UInt32 = 0
    /// At least as many bytes as, from the start of the buffer, may be something else than zeros: the lengths of all
    /// writes since then, or-ed together (null target; outlives the request).
    var dirty: UInt32 = 0
    var retries: UInt16 = 0
    /// Where what remains of the request is read from or written to, when it is not where it normally is.
    var detour: Detour = .none

    /// Makes it ready for the next request.
    mutating func settle() {
        troubled = 0
        moved = 0
        retries = 0
        detour = .none
    }

    enum Detour: UInt16 {
        case none
        /// Not through the direct file any more.
        case buffered
        /// Not from the file: zeros, since the file has ended (zero copy only).
        case zeroes
        /// It is with the thread that does ranges of a file.
        case board
    }
}

/// Where the data of requests lies.
enum RequestBuffers {
    /// In memory of ours, one buffer per tag: the kernel copies between it and the request (every driver).
    case own
    /// Zero copy: in the request's own pages, which the driver has put into slot `tag` of the ring's buffer table; only
    /// the kernel can reach them. `base` is the address of a buffer's first byte: 0, but for tests that register their own.
    case registered(base: UInt64 = 0)
}

/// One hardware queue: its ring, its request descriptors, and one buffer and one record per tag. All memory is allocated
/// here, once.
struct Queue: ~Copyable {
    var ring: Ring
    /// Requests whose target waits for something. None: the queue waits for the next request, and not for I/O.
    var pending: UInt32 = 0
    let number: UInt16
    let depth: UInt16
    /// One per tag.
    let requests: UnsafeMutablePointer<Request>
    /// Bytes between the buffers of two tags: the largest request, rounded up to pages. 0 with registered buffers.
    let bufferStride: UInt64
    let bufferBase: UInt64
    /// Data moves between the file and the requests' own pages; nobody here sees it.
    let isZeroCopy: Bool
    /// The first word of every fetch and commit: URING_CMD on /dev/ublkcN. A test puts a NOP there and plays the kernel.
    let commandHead: UInt64
    /// The numbers of the two commands: drivers before Linux 6.4 know plain ones.
    let fetchCommand: UInt32
    let commitCommand: UInt32
    /// The kernel's description of each tag's request; read-only and valid from its command's completion to its commit.
    var descriptors: UnsafePointer<UblkIODescriptor>
    /// Tags that the driver has not taken back yet.
    var live: Int
    #if UBD_TEST_CRASH
        var crash = TestCrash()
    #endif
    /// What the broker can see of it.
    var counters: Counters
    /// Discards and write-zeroes.
    var ranges: RangeLimit
    /// Where those of a regular file are done; nil when none are.
    let board: RangeBoard?

    /// In force until the kernel's are mapped: what a test plays the kernel with.
    let ownDescriptors: UnsafeMutablePointer<UblkIODescriptor>
    /// Where it counts when no broker gave it a page.
    private let ownWords: UnsafeMutablePointer<UInt64>
    private let buffers: Mapping?
    private var descriptorMemory: Mapping?

    /// Index of /dev/ublkcN in the ring's file table. The target's files follow.
    static let deviceSlot: Int32 = 0
    static let deviceHead = SubmissionEntry.head(
        operation: IOUring.Operation.uringCommand, flags: IOUring.EntryFlags.fixedFile, file: deviceSlot)

    /// `depth` is at most the ring's capacity: each request has one submission at a time, so that the ring never
    /// overflows. `maxIOBytes` in bytes. `words`: where it counts, StatisticsPage.stride bytes.
    init(
        number: UInt16, depth: UInt16, maxIOBytes: UInt32, ring: consuming Ring, buffers: RequestBuffers = .own,
        commandHead: UInt64 = Queue.deviceHead, legacyOpcodes: Bool = false,
        words: UnsafeMutablePointer<UInt64>? = nil, clock: TickClock = .none, board: RangeBoard? = nil
    ) throws(SystemError) {
        precondition(UInt32(depth) <= ring.capacity && depth > 0)
        switch buffers {
        case .own:
            let page = Int(sysconf(Int32(_SC_PAGESIZE)))
            let stride = (Int(maxIOBytes) + page - 1) / page * page
            let memory = try Mapping.anonymous(bytes: stride * Int(depth))
            // What users wrote to their disk does not belong into a core dump.
            madvise(memory.base, memory.count, Int32(MADV_DONTDUMP))
            bufferStride = UInt64(stride)
            bufferBase = UInt64(UInt(bitPattern: memory.base))
            isZeroCopy = false
            self.buffers = .some(consume memory)
        case .registered(let base):
            bufferStride = 0
            bufferBase = base
            isZeroCopy = true
            self.buffers = nil
        }
        requests = .allocate(capacity: Int(depth))
        requests.initialize(repeating: Request(), count: Int(depth))
        ownDescriptors = .allocate(capacity: Int(depth))
        ownDescriptors.initialize(
            repeating: UblkIODescriptor(operationAndFlags: 0, sectors: 0, startSector: 0), count: Int(depth))
        descriptors = UnsafePointer(ownDescriptors)
        let ownWords = UnsafeMutablePointer<UInt64>.allocate(capacity: StatisticsPage.Word.count)
        ownWords.initialize(repeating: 0, count: StatisticsPage.Word.count)
        self.ownWords = ownWords
        counters = Counters(words: words ?? ownWords, clock: clock)
        ranges = RangeLimit(depth: depth)
        self.board = board
        self.ring = ring
        self.number = number
        self.depth = depth
        self.commandHead = commandHead
        fetchCommand = legacyOpcodes ? UblkIOCommand.legacyFetch : UblkIOCommand.fetch
        commitCommand = legacyOpcodes ? UblkIOCommand.legacyCommitAndFetch : UblkIOCommand.commitAndFetch
        live = Int(depth)
        descriptorMemory = nil
    }

    deinit {
        requests.deallocate()
        ownDescriptors.deallocate()
        ownWords.deallocate()
        ranges.deallocate()
    }

    /// Maps the kernel's descriptors of this queue. After the fetches: a mapping before them would keep a replacement
    /// from ever mapping its own when this worker dies half-way (Linux 6.12; docs/kernel-facts.md#map-after-fetch).
    mutating func mapDescriptors(device: Int32) throws(SystemError) {
        let page = Int(sysconf(Int32(_SC_PAGESIZE)))
        let memory = try Mapping.shared(
            device, offset: UblkDescriptorMapping.offset(queue: Int(number), pageSize: page),
            bytes: UblkDescriptorMapping.length(depth: Int(depth), pageSize: page), writable: false)
        descriptors = UnsafePointer(memory.base.assumingMemoryBound(to: UblkIODescriptor.self))
        descriptorMemory = .some(consume memory)
    }

    /// The address of a request's data, or its offset in the request's registered buffer.
    @inline(__always)
    func buffer(of tag: UInt16) -> UInt64 { bufferBase &+ UInt64(tag) &* bufferStride }

    /// Only where the buffers are ours.
    @inline(__always)
    func bufferPointer(of tag: UInt16) -> UnsafeMutableRawPointer {
        UnsafeMutableRawPointer(bitPattern: UInt(buffer(of: tag)))!
    }

    /// Asks the kernel for a request on every tag, in one system call. Throws when it refuses one; a queue must never be
    /// left half-fetched, so the caller ends the process then.
    mutating func fetchAll() throws(SystemError) {
        for tag in 0..<depth { push(fetchCommand, tag: tag, result: 0) }
        try submitFetches()
    }

    /// Submits the fetches that were pushed, and sees to it that none was refused.
    mutating func submitFetches() throws(SystemError) {
        let status = ring.submit(waitingFor: 0)
        if status < 0 { throw SystemError("fetch on queue \(number)", Int32(-status)) }
        if ring.untaken != 0 { throw SystemError("fetch on queue \(number)", EAGAIN) }
        // A fetch that was taken completes when a request comes. One that has completed already was refused. The
        // completions are left where they are: the loop will take them.
        var batch = ring.completions()
        while let completion = batch.take() {
            if completion.result < 0 { throw SystemError("fetch on queue \(number)", -completion.result) }
        }
    }

    /// Gives a read or write that moved its bytes back, and asks for the next request on the same tag.
    @inline(__always)
    mutating func commit(_ tag: UInt16, _ descriptor: UblkIODescriptor, _ outcome: Outcome) {
        counters.complete(tag, descriptor, bytes: outcome.rawValue)
        push(commitCommand, tag: tag, result: outcome.rawValue)
    }

    /// The same for a request that moved no data, or failed.
    @inline(never)
    mutating func commitRare(_ tag: UInt16, _ outcome: Outcome) {
        counters.settle(tag, descriptors[Int(tag)], outcome)
        push(commitCommand, tag: tag, result: outcome.rawValue)
    }

    @inline(__always)
    private mutating func push(_ command: UInt32, tag: UInt16, result: Int32) {
        ring.push(
            .command(
                head: commandHead, command, payload: UblkIOCommand.payload(queue: number, tag: tag, result: result),
                address: buffer(of: tag), userData: RequestKey(tag: tag, .command).rawValue,
                // Zero copy: the slot of the buffer table for the request's pages. Copy: not looked at.
                entryAddress: UInt64(tag)))
    }
}
