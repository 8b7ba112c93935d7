import Glibc
import KernelABI
import Ring
import SystemCalls
import Targets
import WorkerProtocol

/// Where the data of requests lies.
enum RequestBuffers {
    /// In the worker's memory, one buffer per tag: the kernel copies between it and the request (every driver).
    case own
    /// Zero copy: in the request's own pages, which the driver has put into slot `tag` of the ring's buffer table; only
    /// the kernel can reach them. `base` is the address of a buffer's first byte: 0, except for tests that register
    /// their own.
    case registered(base: UInt64 = 0)
}

/// Slots of a ring's file table. The target's files follow the device.
enum RingFiles {
    /// /dev/ublkcN
    static let device: Int32 = 0
    /// /dev/zero, in zero-copy mode.
    static let zeroes: Int32 = 3
    /// The first word of a fetch or commit.
    static let deviceHead = SubmissionEntry.head(
        operation: IOUring.Operation.uringCommand, flags: IOUring.EntryFlags.fixedFile, file: device)
    /// The first word of a read of zeros into a registered buffer.
    static let zeroesHead = SubmissionEntry.head(
        operation: IOUring.Operation.readFixed, flags: IOUring.EntryFlags.fixedFile, file: zeroes)
}

/// One hardware queue: its ring, its request descriptors, and one buffer and one record per tag. All memory is allocated
/// here, once.
struct Queue<T: Target>: ~Copyable {
    var ring: Ring
    /// Requests whose target waits for I/O. 0: the queue waits for the next request, which is no wait for I/O.
    var pending: UInt32 = 0
    let number: UInt16
    let depth: UInt16
    /// One per tag.
    let requests: UnsafeMutablePointer<T.State>
    /// Bytes between the buffers of two tags: the largest request, rounded up to pages. 0 with registered buffers.
    let bufferStride: UInt64
    let bufferBase: UInt64
    /// The address of each tag's buffer, where buffers change places (`Target.spareBuffers`).
    private let places: UnsafeMutablePointer<UInt64>
    /// Data moves between the file and the requests' own pages; the worker cannot see it.
    let isZeroCopy: Bool
    /// The first word of every fetch and commit: URING_CMD on /dev/ublkcN. A test puts a NOP there and plays the kernel.
    let commandHead: UInt64
    /// The numbers of the two commands: drivers before Linux 6.4 use plain numbers.
    let fetchCommand: UInt32
    let commitCommand: UInt32
    /// The kernel's description of each tag's request; read-only and valid from its command's completion to its commit.
    var descriptors: UnsafePointer<UblkIODescriptor>
    /// Tags that the driver has not aborted yet.
    var live: Int
    #if UBD_TEST_CRASH
        var crash = TestCrash()
    #endif
    /// The counters, which the broker can read.
    var counters: Counters
    /// The submissions under way, when the target's submissions are not single.
    var ledger: SubmissionLedger
    /// Discards and write-zeroes.
    var ranges: RangeLimit
    /// The board for those of a regular file; nil when there are none.
    let board: RangeBoard?

    /// Used until the kernel's descriptors are mapped; a test plays the kernel with them.
    let ownDescriptors: UnsafeMutablePointer<UblkIODescriptor>
    /// The counters' memory when no broker gave it a page.
    private let ownWords: UnsafeMutablePointer<UInt64>
    private let buffers: Mapping?
    private var descriptorMemory: Mapping?
    /// The second ring, of a target whose submissions have a socket; else there is nothing. Behind a pointer, since the compiler
    /// copies an optional struct of its size for each use.
    let socket: UnsafeMutablePointer<SocketRing>
    /// What the target took.
    private var targetMemory: Mapping?
    /// Not 0: the queue can't go on, and the process ends with this status.
    private(set) var exitStatus: Int32 = 0

    /// `maxIOBytes` in bytes. `words`: memory for the counters, StatisticsPage.stride bytes. Throws ENOBUFS when the
    /// ring has fewer entries than the target's submissions need at this depth.
    init(
        number: UInt16, depth: UInt16, maxIOBytes: UInt32, ring: consuming Ring, buffers: RequestBuffers = .own,
        commandHead: UInt64 = RingFiles.deviceHead, legacyOpcodes: Bool = false,
        words: UnsafeMutablePointer<UInt64>? = nil, clock: TickClock = .none, board: RangeBoard? = nil,
        socket: consuming SocketRing? = nil
    ) throws(SystemError) {
        precondition(depth > 0 && (socket != nil) == T.submissions.hasSocket)
        let needed = T.submissions.entries(depth: depth)
        guard needed <= ring.capacity else {
            throw SystemError("use a ring of \(ring.capacity) entries where \(needed) are needed", ENOBUFS)
        }
        switch buffers {
        case .own:
            let page = Int(sysconf(Int32(_SC_PAGESIZE)))
            let stride = (Int(maxIOBytes) + page - 1) / page * page
            let buffers = Int(depth) + Queue.spareBuffers(depth: depth)
            let memory = try Mapping.anonymous(bytes: stride * buffers)
            // Users' data must not get into a core dump.
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
        places = .allocate(capacity: T.spareBuffers == 0 ? 0 : Int(depth))
        if T.spareBuffers != 0 {
            for tag in 0..<Int(depth) { places[tag] = bufferBase + UInt64(tag) * bufferStride }
        }
        requests = .allocate(capacity: Int(depth))
        requests.initialize(repeating: T.State(), count: Int(depth))
        ownDescriptors = .allocate(capacity: Int(depth))
        ownDescriptors.initialize(
            repeating: UblkIODescriptor(operationAndFlags: 0, sectors: 0, startSector: 0), count: Int(depth))
        descriptors = UnsafePointer(ownDescriptors)
        let ownWords = UnsafeMutablePointer<UInt64>.allocate(capacity: StatisticsPage.Word.count)
        ownWords.initialize(repeating: 0, count: StatisticsPage.Word.count)
        self.ownWords = ownWords
        counters = Counters(words: words ?? ownWords, clock: clock)
        ledger = SubmissionLedger(T.submissions, depth: depth)
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
        self.socket = .allocate(capacity: 1)
        if let socket { self.socket.initialize(to: socket) }
        targetMemory = nil
    }

    deinit {
        if T.submissions.hasSocket { socket.deinitialize(count: 1) }
        socket.deallocate()
        places.deallocate()
        requests.deallocate()
        ownDescriptors.deallocate()
        ownWords.deallocate()
        ledger.deallocate()
        ranges.deallocate()
    }

    /// Maps the kernel's descriptors of this queue. Called after the fetches: a mapping before them would keep a
    /// replacement from mapping its own if this worker dies half-way (Linux 6.12;
    /// docs/kernel-facts.md#map-after-fetch).
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
    func buffer(of tag: UInt16) -> UInt64 {
        T.spareBuffers == 0 ? bufferBase &+ UInt64(tag) &* bufferStride : places[Int(tag)]
    }

    /// Only with buffers in the worker's memory.
    @inline(__always)
    func bufferPointer(of tag: UInt16) -> UnsafeMutableRawPointer {
        UnsafeMutableRawPointer(bitPattern: UInt(buffer(of: tag)))!
    }

    // MARK: For the target

    /// No more than one for each request.
    private static func spareBuffers(depth: UInt16) -> Int { min(Int(T.spareBuffers), Int(depth)) }

    /// The addresses of the spare buffers, as they are at first.
    var spareBuffers: [UInt64] {
        (0..<Queue.spareBuffers(depth: depth)).map { bufferBase + UInt64(Int(depth) + $0) * bufferStride }
    }

    /// Gives a request another buffer, with the data that it reads, and returns its old one, which is spare now. Only between a
    /// read's beginning and its end: the commit tells the driver where the data is, and where the tag's next data goes. At any
    /// other time the driver may write into the old one.
    @inline(__always)
    func exchangeBuffer(of tag: UInt16, for other: UInt64) -> UInt64 {
        let old = places[Int(tag)]
        places[Int(tag)] = other
        return old
    }

    /// Keeps memory of the target's as long as the queue is there, and returns its address. What lies there does not belong into
    /// a core dump.
    mutating func hold(bytes: Int) throws(SystemError) -> UnsafeMutableRawPointer {
        let memory = try Mapping.anonymous(bytes: bytes)
        let base = memory.base
        madvise(base, memory.count, Int32(MADV_DONTDUMP))
        targetMemory = .some(consume memory)
        return base
    }

    /// Queues a submission for the queue's socket, whose user_data is a RequestKey of the queue's own with a slot from
    /// `Submissions.ofQueue` on.
    @inline(__always)
    mutating func pushToSocket(_ entry: SubmissionEntry) {
        ledger.beginOwn(RequestKey(rawValue: entry.userData))
        socket.pointee.ring.push(entry)
    }

    /// The queue can't go on: the process ends with this status, but not before the queue's first request (`mustEnd`). Of what was
    /// completed in this turn nothing is given back, unless the status says that the connection is gone
    /// (`RequestLoop.giveBackLast`).
    mutating func giveUp(_ status: Int32) {
        if exitStatus == 0 { exitStatus = status }
    }

    /// Whether a queue that was given up ends the process now. Before its first request it does not: other queues may still be
    /// fetching, and Linux 6.12 can't recover a device whose worker died between two queues' fetches. The first request comes when
    /// the device is live.
    @inline(never)
    func mustEnd() -> Bool { exitStatus != 0 && counters.hasTaken }

    /// Queues a submission of the target, whose user_data is a RequestKey; the kernel sees it at the end of the turn.
    @inline(__always)
    mutating func push(_ entry: SubmissionEntry) {
        if !T.submissions.areSingle { ledger.begin(RequestKey(rawValue: entry.userData)) }
        ring.push(entry)
    }

    /// Ends a request; any completion may end any number of requests. Each is committed at the end of this turn. Only
    /// for a target whose submissions are not single: others end a request by the outcome that they return.
    mutating func complete(_ tag: UInt16, _ outcome: Outcome) {
        precondition(!T.submissions.areSingle, "this target ends each request by its own completion")
        ledger.end(tag, outcome)
    }

    /// The number of submissions of a request that are under way. A submission that has completed no longer counts once
    /// the target has got the completion. Not known for a target whose submissions are single.
    func underWay(_ tag: UInt16) -> Int { ledger.count(tag) }

    /// Ends the process, since the queue can't go on.
    borrowing func endProcess() -> Never {
        _exit(exitStatus == 0 ? WorkerExit.ringFailed : exitStatus)
    }

    // MARK: For the loop

    /// A submission of the queue itself has completed. Returns 0, or a negated errno as `RequestLoop.turn` does.
    @inline(never)
    mutating func finishOwn(_ completion: CompletionEntry, by target: inout T) -> Int {
        let key = RequestKey(rawValue: completion.userData)
        let isMore = completion.flags & IOUring.CompletionFlags.more != 0
        // None was under way in that slot.
        guard isMore ? ledger.isUnderWay(key) : ledger.finishOwn(key) else { return -Int(EPROTO) }
        if T.submissions.hasSocket, key.slot == SocketRing.eventSlot { return eventCame(completion.result) }
        target.finishOwn(key, completion, on: &self)
        return 0
    }

    /// Asks the kernel for a request on every tag, in one system call. Throws when it refuses one. A queue must never
    /// be left half-fetched, so the caller then ends the process.
    mutating func fetchAll() throws(SystemError) {
        for tag in 0..<depth { pushCommand(fetchCommand, tag: tag, result: 0) }
        try submitFetches()
    }

    /// Submits the fetches that were pushed, and checks that none was refused.
    mutating func submitFetches() throws(SystemError) {
        let status = ring.submit(waitingFor: 0)
        if status < 0 { throw SystemError("fetch on queue \(number)", Int32(-status)) }
        if ring.untaken != 0 { throw SystemError("fetch on queue \(number)", EAGAIN) }
        // An accepted fetch completes when a request arrives, so one that has completed already was refused. The
        // completions stay in the ring for the loop.
        var batch = ring.completions()
        while let completion = batch.take() {
            if completion.result < 0 { throw SystemError("fetch on queue \(number)", -completion.result) }
        }
    }

    /// Commits a read or write that moved all its bytes, and asks for the next request on the same tag.
    @inline(__always)
    mutating func commit(_ tag: UInt16, _ descriptor: UblkIODescriptor, _ outcome: Outcome) {
        counters.complete(tag, descriptor, bytes: outcome.rawValue)
        pushCommand(commitCommand, tag: tag, result: outcome.rawValue)
    }

    /// The same for a request that moved no data, or failed.
    @inline(never)
    mutating func commitRare(_ tag: UInt16, _ outcome: Outcome) {
        counters.settle(tag, descriptors[Int(tag)], outcome)
        pushCommand(commitCommand, tag: tag, result: outcome.rawValue)
    }

    @inline(__always)
    private mutating func pushCommand(_ command: UInt32, tag: UInt16, result: Int32) {
        ring.push(
            .command(
                head: commandHead, command, payload: UblkIOCommand.payload(queue: number, tag: tag, result: result),
                address: buffer(of: tag), userData: RequestKey(tag: tag, .command).rawValue,
                // Zero copy: the slot of the buffer table for the request's pages. Copy: ignored.
                entryAddress: UInt64(tag)))
    }
}
