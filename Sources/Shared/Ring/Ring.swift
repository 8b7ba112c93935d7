import CLiburing
import CShims
import KernelABI
import Synchronization
import SystemCalls

/// An io_uring with one owner, used by one thread.
///
/// The hot path is `push`, `submit` and the walk over a `CompletionBatch`: plain loads and stores on the memory that is
/// shared with the kernel, one acquire and one release each: liburing's own get_sqe and prep cost 15 instructions more for
/// each submission. All of it is inlinable so that the queue engine, which is
/// in another module, is compiled as one piece with it. Source: io_uring(7), and swift-system's IORing for the types.
@frozen
public struct Ring: ~Copyable {
    @usableFromInline let submissionTail: UnsafeMutablePointer<Atomic<UInt32>>
    @usableFromInline let submissionEntries: UnsafeMutableRawPointer
    @usableFromInline let submissionEnd: UnsafeMutableRawPointer
    @usableFromInline let completionHead: UnsafeMutablePointer<Atomic<UInt32>>
    @usableFromInline let completionTail: UnsafeMutablePointer<Atomic<UInt32>>
    @usableFromInline let completionEntries: UnsafePointer<CompletionEntry>
    @usableFromInline let completionMask: UInt32
    /// Where the next submission is written.
    @usableFromInline var next: UnsafeMutableRawPointer
    /// The end of the entries, or the first entry that the kernel has not taken yet. `next` is never there when `push` is called.
    @usableFromInline var stop: UnsafeMutableRawPointer
    /// The number of the submission that `next` is to be, less the address of its entry in units of an entry.
    @usableFromInline var bias: UInt32
    /// Submissions that the kernel has taken.
    @usableFromInline var taken: UInt32
    /// The ring's descriptor, or its registered index once `enterFlags` says so.
    @usableFromInline var enterDescriptor: Int32
    @usableFromInline var enterFlags: UInt32
    /// The same for a wait that is one for I/O.
    @usableFromInline var enterFlagsForIO: UInt32
    @usableFromInline var setup: RingSetup

    /// Number of submissions that fit before `submit` must be called: one less than the ring has entries.
    public let capacity: UInt32

    /// Creates a ring with room for at least `entries` submissions and `completions` completions: the kernel makes them powers of
    /// two, and `push` keeps one entry free. Errors: those of io_uring_setup(2); EPERM when kernel.io_uring_disabled forbids it.
    public init(entries: UInt32, completions: UInt32, flags: UInt32) throws(SystemError) {
        let setup = try RingSetup(entries: entries + 1, completions: max(completions, entries + 1), flags: flags)
        let (submissions, completions) = (setup.ring.sq, setup.ring.cq)
        submissionTail = Ring.atomic(submissions.ktail)
        submissionEntries = UnsafeMutableRawPointer(submissions.sqes)
        submissionEnd = submissionEntries + Int(submissions.ring_entries) * MemoryLayout<SubmissionEntry>.stride
        completionHead = Ring.atomic(completions.khead)
        completionTail = Ring.atomic(completions.ktail)
        completionMask = completions.ring_mask
        completionEntries = UnsafeRawPointer(completions.cqes).assumingMemoryBound(to: CompletionEntry.self)
        capacity = submissions.ring_entries - 1
        next = submissionEntries
        stop = submissionEnd
        bias = 0 &- Ring.units(submissionEntries)
        taken = 0
        enterDescriptor = setup.ring.ring_fd
        enterFlagsForIO = IOUring.Enter.getEvents
        enterFlags = IOUring.Enter.getEvents
        if setup.ring.features & IOUring.Feature.noIOWait != 0 { enterFlags |= IOUring.Enter.noIOWait }
        self.setup = setup
    }

    private static func atomic(_ word: UnsafeMutablePointer<UInt32>) -> UnsafeMutablePointer<Atomic<UInt32>> {
        UnsafeMutableRawPointer(word).assumingMemoryBound(to: Atomic<UInt32>.self)
    }

    /// Queues one submission; it is seen by the kernel at the next `submit`. One more than `capacity` overwrites nothing and
    /// ends the process.
    @inlinable @inline(__always)
    public mutating func push(_ entry: SubmissionEntry) {
        next.assumingMemoryBound(to: SubmissionEntry.self).pointee = entry
        next += MemoryLayout<SubmissionEntry>.stride
        // Afterwards: the caller has less to keep across the call than it would have before the entry is written.
        if next == stop { findRoom() }
    }

    /// Finds the entry for the next submission: the first one again, or one that the kernel has taken since this was last called.
    /// There is none when all entries wait for the kernel; the process ends then.
    ///
    /// Room is looked for only here, as a rule once for all entries of the ring. So `push` only compares two addresses, which costs
    /// less than to compute the entry from a counter.
    @usableFromInline @inline(never)
    mutating func findRoom() {
        if next == submissionEnd {
            bias &+= capacity &+ 1
            next = submissionEntries
        }
        let waiting = untaken
        precondition(waiting <= capacity, "too many submissions wait for the kernel")
        let free = Int(capacity &+ 1 &- waiting) &* MemoryLayout<SubmissionEntry>.stride
        stop = next + min(free, submissionEnd - next)
    }

    /// Submissions pushed so far, whether the kernel knows of them yet or not.
    @inlinable @inline(__always)
    var tail: UInt32 { bias &+ Ring.units(next) }

    /// An address in units of an entry. Entries begin at a page, so that none is lost.
    @inlinable @inline(__always)
    static func units(_ address: UnsafeMutableRawPointer) -> UInt32 {
        UInt32(truncatingIfNeeded: UInt(bitPattern: address) / UInt(MemoryLayout<SubmissionEntry>.stride))
    }

    /// Tells the kernel about everything pushed and waits until at least `minimum` completions are there. Returns 0,
    /// or a negated errno; what the kernel did not take stays pending.
    ///
    /// `forIO`: what is waited for is a disk or the like. Who waits for somebody's request is idle; but the kernel takes
    /// everybody who waits in a ring for a waiter for I/O, unless told (io_uring_set_iowait(3), Linux 6.15): one idle
    /// device would show as a processor in iowait and as pressure of I/O, and cost the host's processors their deep sleep.
    @inlinable @inline(__always)
    public mutating func submit(waitingFor minimum: UInt32, forIO: Bool = false) -> Int {
        let tail = tail
        submissionTail.pointee.store(tail, ordering: .releasing)
        let flags = forIO ? enterFlagsForIO : enterFlags
        let result = ubd_io_uring_enter(enterDescriptor, tail &- taken, minimum, flags)
        if result < 0 { return result }
        taken &+= UInt32(truncatingIfNeeded: result)
        return 0
    }

    /// How many pushed submissions the kernel has not taken yet.
    @inlinable @inline(__always)
    public var untaken: UInt32 { tail &- taken }

    /// The completions that are there now. Give it back with `finish` when they are handled.
    @inlinable @inline(__always)
    public func completions() -> CompletionBatch {
        CompletionBatch(
            next: completionHead.pointee.load(ordering: .relaxed),
            end: completionTail.pointee.load(ordering: .acquiring),
            entries: completionEntries, mask: completionMask)
    }

    /// Hands the slots of a batch back to the kernel.
    @inlinable @inline(__always)
    public func finish(_ batch: CompletionBatch) {
        completionHead.pointee.store(batch.next, ordering: .releasing)
    }
}

/// Tells the kernel how many buffers a ring of provided buffers was given so far, counted from its beginning.
@inlinable @inline(__always)
public func publishBufferTail(_ ring: UnsafeMutableRawPointer, _ tail: UInt16) {
    // struct io_uring_buf_ring: the tail lies where the first entry has nothing.
    (ring + 14).assumingMemoryBound(to: Atomic<UInt16>.self).pointee.store(tail, ordering: .releasing)
}

/// The completions of one wake-up, in order.
@frozen
public struct CompletionBatch {
    @usableFromInline var nextIndex: UInt32
    @usableFromInline let end: UInt32
    @usableFromInline let entries: UnsafePointer<CompletionEntry>
    @usableFromInline let mask: UInt32

    @inlinable @inline(__always)
    init(next: UInt32, end: UInt32, entries: UnsafePointer<CompletionEntry>, mask: UInt32) {
        self.nextIndex = next
        self.end = end
        self.entries = entries
        self.mask = mask
    }

    @inlinable @inline(__always)
    var next: UInt32 { nextIndex }

    /// How many are left.
    @inlinable @inline(__always)
    public var count: Int { Int(end &- nextIndex) }

    @inlinable @inline(__always)
    public mutating func take() -> CompletionEntry? {
        if nextIndex == end { return nil }
        let entry = entries[Int(nextIndex & mask)]
        nextIndex &+= 1
        return entry
    }
}
