import CLiburing
import CShims
import KernelABI
import Synchronization
import SystemCalls

/// An io_uring with one owner, used by one thread.
///
/// The hot path is `push`, `submit` and the walk over a `CompletionBatch`: plain loads and stores in the memory shared
/// with the kernel, with one acquire and one release each. liburing's get_sqe and prep would cost 15 more instructions
/// per submission. The hot path is inlinable, so that the compiler optimizes the queue engine, in another module,
/// together with it. Sources: io_uring(7), and swift-system's IORing for the types.
@frozen
public struct Ring: ~Copyable {
    @usableFromInline let submissionTail: UnsafeMutablePointer<Atomic<UInt32>>
    @usableFromInline let submissionEntries: UnsafeMutableRawPointer
    @usableFromInline let submissionEnd: UnsafeMutableRawPointer
    @usableFromInline let completionHead: UnsafeMutablePointer<Atomic<UInt32>>
    @usableFromInline let completionTail: UnsafeMutablePointer<Atomic<UInt32>>
    @usableFromInline let completionEntries: UnsafePointer<CompletionEntry>
    @usableFromInline let completionMask: UInt32
    /// The slot of the next submission.
    @usableFromInline var next: UnsafeMutableRawPointer
    /// The end of the slots, or the first slot that the kernel has not read yet. Whenever `push` is called, `next` is
    /// below it.
    @usableFromInline var stop: UnsafeMutableRawPointer
    /// The count of submissions before `next`, minus the address of `next` in units of a slot.
    @usableFromInline var bias: UInt32
    /// The number of submissions that the kernel has consumed.
    @usableFromInline var taken: UInt32
    /// The ring's descriptor, or its registered index if `enterFlags` has registeredRing.
    @usableFromInline var enterDescriptor: Int32
    @usableFromInline var enterFlags: UInt32
    /// The same for a wait that counts as a wait for I/O.
    @usableFromInline var enterFlagsForIO: UInt32
    @usableFromInline var setup: RingSetup
    /// What the kernel looks at before it signals the ring's event.
    @usableFromInline let completionFlags: UnsafeMutablePointer<Atomic<UInt32>>

    /// The number of submissions that fit before `submit` must be called: one less than the ring's slots.
    public let capacity: UInt32

    /// Creates a ring with room for at least `entries` submissions and `completions` completions. The kernel rounds
    /// both up to powers of two, and `push` keeps one slot free. Errors: those of io_uring_setup(2); EPERM when
    /// kernel.io_uring_disabled forbids it.
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
        completionFlags = Ring.atomic(completions.kflags)
        self.setup = setup
    }

    private static func atomic(_ word: UnsafeMutablePointer<UInt32>) -> UnsafeMutablePointer<Atomic<UInt32>> {
        UnsafeMutableRawPointer(word).assumingMemoryBound(to: Atomic<UInt32>.self)
    }

    /// Queues a submission, which the kernel reads at the next `submit`. More than `capacity` pending submissions end
    /// the process instead of overwriting one.
    @inlinable @inline(__always)
    public mutating func push(_ entry: SubmissionEntry) {
        next.assumingMemoryBound(to: SubmissionEntry.self).pointee = entry
        next += MemoryLayout<SubmissionEntry>.stride
        // Checked after the store: the caller then keeps fewer registers across the call.
        if next == stop { findRoom() }
    }

    /// Finds the slot for the next submission: the first slot again, or slots that the kernel has consumed since the
    /// last call. If the kernel has consumed none, the process ends.
    ///
    /// Only this function looks for room, usually once per round through the ring. So `push` only compares two
    /// addresses, which is cheaper than computing the slot from a counter.
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

    /// The number of submissions pushed so far.
    @inlinable @inline(__always)
    var tail: UInt32 { bias &+ Ring.units(next) }

    /// An address in units of a slot. The slots begin at a page boundary, so the division is exact.
    @inlinable @inline(__always)
    static func units(_ address: UnsafeMutableRawPointer) -> UInt32 {
        UInt32(truncatingIfNeeded: UInt(bitPattern: address) / UInt(MemoryLayout<SubmissionEntry>.stride))
    }

    /// Submits all pushed entries and waits for at least `minimum` completions. Returns 0 or a negative errno; entries
    /// that the kernel did not consume stay pending.
    ///
    /// `forIO`: the wait is for a disk or the like, not for a request. By default the kernel counts every wait in a
    /// ring as a wait for I/O (io_uring_set_iowait(3), Linux 6.15). Then an idle device would show up as iowait and I/O
    /// pressure, and keep the host's processors from deep sleep.
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

    /// The number of pushed submissions that the kernel has not consumed.
    @inlinable @inline(__always)
    public var untaken: UInt32 { tail &- taken }

    /// The completions that have arrived. Pass the batch to `finish` after handling them.
    @inlinable @inline(__always)
    public func completions() -> CompletionBatch {
        CompletionBatch(
            next: completionHead.pointee.load(ordering: .relaxed),
            end: completionTail.pointee.load(ordering: .acquiring),
            entries: completionEntries, mask: completionMask)
    }

    /// Some completions are there.
    @inlinable @inline(__always)
    public var hasCompletions: Bool {
        completionHead.pointee.load(ordering: .relaxed) != completionTail.pointee.load(ordering: .acquiring)
    }

    /// From now on a completion signals the ring's event, or does not (io_uring_cq_eventfd_toggle(3)). Who sleeps elsewhere turns
    /// it on, looks once more whether completions are there, and only then sleeps.
    @inlinable @inline(__always)
    public func signalEvent(_ wanted: Bool) {
        let flags = wanted ? 0 : IOUring.eventDisabled
        completionFlags.pointee.store(flags, ordering: .relaxed)
        // What is looked at afterwards is looked at after the kernel can see the flag.
        if wanted { atomicMemoryFence(ordering: .sequentiallyConsistent) }
    }

    /// Returns the slots of a batch to the kernel.
    @inlinable @inline(__always)
    public func finish(_ batch: CompletionBatch) {
        completionHead.pointee.store(batch.next, ordering: .releasing)
    }
}

/// Publishes the number of buffers added so far to a ring of provided buffers.
@inlinable @inline(__always)
public func publishBufferTail(_ ring: UnsafeMutableRawPointer, _ tail: UInt16) {
    // The tail of struct io_uring_buf_ring overlays the reserved field of the first entry.
    (ring + 14).assumingMemoryBound(to: Atomic<UInt16>.self).pointee.store(tail, ordering: .releasing)
}

/// The completions of one wake-up, oldest first.
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

    /// The number of completions left.
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
