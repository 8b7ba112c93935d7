import CShims
import Glibc
import KernelABI
import Ring
import SystemCalls
import Targets
import WorkerProtocol

/// The data for the thread of one queue. A value that is made before the thread and never changes.
struct QueueAssignment: Sendable {
    var number: UInt16
    /// Requests per queue.
    var depth: UInt16
    /// Bytes.
    var maxIOBytes: UInt32
    var target: any ServedTarget
    /// The driver puts the pages of requests into the ring's buffer table.
    var zeroCopy: Bool
    /// The driver delivers and takes many requests at a time.
    var batch: Bool
    /// The ring's file table: /dev/ublkcN, then the target's files.
    var files: [Int32]
    /// The processors, one bit each, from which the kernel gives this queue requests; empty: not known.
    var processors: [UInt64]
    /// nil only in Benchmarks/system/bare, which no broker accepts as a worker.
    var seal: RingSeal?
    /// The queue's socket, and what the ring may do that has it; -1 and nil for a target without.
    var socket: Int32 = -1
    var socketSeal: RingSeal?
    /// Command numbers of drivers before Linux 6.4.
    var legacyOpcodes: Bool
    /// Address of this queue's part of the statistics page.
    var statistics: UInt
    /// The clock for requests; none where the processors' own clocks are not reliable.
    var clock: TickClock
    /// The board for discards and write-zeroes of a regular file; nil when there are none.
    var board: RangeBoard?
    var rendezvous: Rendezvous

    /// A ring's file table: /dev/ublkcN, then a target's files, and in zero copy `/dev/zero` in its own slot behind them.
    ///
    /// - Throws: `fileCount` when there are more files than fit before that slot.
    static func fileTable(_ targets: [Int32], zeroCopy: Bool) throws(WorkerFailure) -> [Int32] {
        let files = [WorkerDescriptor.device] + targets
        guard zeroCopy else { return files }
        let empty = Int(RingFiles.zeroes) - files.count
        guard empty >= 0 else { throw WorkerFailure(.fileCount, detail: UInt64(targets.count)) }
        return files + [Int32](repeating: -1, count: empty) + [WorkerDescriptor.zeroes]
    }
}

enum QueueThread {
    /// Bytes. Small: the loop needs little stack.
    static let stackBytes = 256 << 10

    /// Carries an assignment through pthread_create.
    private final class Parcel {
        let assignment: QueueAssignment
        init(_ assignment: QueueAssignment) { self.assignment = assignment }
    }

    /// Starts the thread of a queue. It never ends; the process does.
    static func start(_ assignment: QueueAssignment) throws(WorkerFailure) {
        let parcel = Unmanaged.passRetained(Parcel(assignment))
        let status = startThread(stackBytes: stackBytes, queueThreadMain, parcel.toOpaque())
        guard status == 0 else {
            parcel.release()
            throw WorkerFailure(.thread, errno: status, detail: UInt64(assignment.number))
        }
    }

    /// A detached thread; returns an errno, or 0.
    static func startThread(
        stackBytes: Int, _ body: @convention(c) (UnsafeMutableRawPointer?) -> UnsafeMutableRawPointer?,
        _ argument: UnsafeMutableRawPointer
    ) -> Int32 {
        var attributes = pthread_attr_t()
        pthread_attr_init(&attributes)
        defer { pthread_attr_destroy(&attributes) }
        pthread_attr_setstacksize(&attributes, stackBytes)
        pthread_attr_setdetachstate(&attributes, Int32(PTHREAD_CREATE_DETACHED))
        var thread = pthread_t()
        return pthread_create(&thread, &attributes, body, argument)
    }

    /// The thread, from its start to its end.
    static func run(_ parcel: UnsafeMutableRawPointer) {
        let assignment = Unmanaged<Parcel>.fromOpaque(parcel).takeRetainedValue().assignment
        pthread_setname_np(pthread_self(), "ubd-q\(assignment.number)")
        // Read before the thread pins itself: all processors that the process may use.
        let helperProcessors = SealedRing.Tables.processorsOfThread()
        if !assignment.processors.isEmpty {
            // On the processors of the requests their data is in the cache. A cpuset of the administrator may forbid
            // it; this is harmless.
            _ = ubd_pin_thread(assignment.processors, assignment.processors.count)
        }
        do {
            // Once in the life of the thread: from here on the types of target and loop are known.
            try assignment.target.serve(assignment, helperProcessors)
        } catch {
            assignment.rendezvous.report(error)
        }
    }

    private struct Prepared<T: Target>: ~Copyable {
        var queue: Queue<T>
        var batch: Batch?
    }

    static func run<T: Target>(
        _ target: T, _ assignment: QueueAssignment, _ helperProcessors: [UInt64]
    ) throws(WorkerFailure) {
        var target = target
        var prepared = try prepare(&target, assignment, helperProcessors)
        if let batch = prepared.batch.take() {
            try serve(BatchLoop(queue: prepared.queue, target: target, batch: batch), assignment)
        } else {
            try serve(QueueLoop(queue: prepared.queue, target: target), assignment)
        }
    }

    /// Makes ring, seal and memory. The driver sees nothing of it.
    private static func prepare<T: Target>(
        _ target: inout T, _ assignment: QueueAssignment, _ helperProcessors: [UInt64]
    ) throws(WorkerFailure) -> Prepared<T> {
        let detail = UInt64(assignment.number)
        var tables = SealedRing.Tables(files: assignment.files)
        tables.helperProcessors = helperProcessors
        if assignment.zeroCopy { tables.bufferSlots = UInt32(assignment.depth) }
        var batch: Batch?
        if assignment.batch {
            let memory: Batch
            do {
                memory = try Batch(
                    queue: assignment.number, depth: assignment.depth, zeroCopy: assignment.zeroCopy)
            } catch {
                throw WorkerFailure(.memory, errno: error.errno, detail: detail)
            }
            tables.bufferRing = (memory.bufferRing, memory.buffers)
            batch = consume memory
        }
        var socket: SocketRing?
        var event: FileDescriptor?
        if T.submissions.hasSocket {
            let made: FileDescriptor
            do { made = try makeEvent() } catch { throw WorkerFailure(.ring, errno: error.errno, detail: detail) }
            socket = SocketRing(try makeSocketRing(T.submissions, assignment, event: made.raw))
            tables.files.insert(made.raw, at: Int(SocketRing.eventFile))
            event = .some(consume made)
        }
        let entries = T.submissions.ringEntries(depth: assignment.depth, batch: assignment.batch)
        let ring = try SealedRing.make(
            queue: assignment.number, entries: entries, tables: tables, seal: assignment.seal)
        // The two rings have it.
        _ = event.take()
        let sealed: Bool
        do {
            sealed = assignment.seal == nil ? false : try forbidFutureRings()
        } catch {
            throw WorkerFailure(.ringSeal, errno: error.errno, detail: detail)
        }
        do {
            var queue = try Queue<T>(
                number: assignment.number, depth: assignment.depth, maxIOBytes: assignment.maxIOBytes, ring: ring,
                buffers: assignment.zeroCopy ? .registered() : .own, legacyOpcodes: assignment.legacyOpcodes,
                words: UnsafeMutablePointer(bitPattern: assignment.statistics), clock: assignment.clock,
                board: assignment.board, socket: socket)
            try target.prepare(on: &queue)
            assignment.rendezvous.reportPrepared(canMakeRings: !sealed)
            return Prepared<T>(queue: queue, batch: batch)
        } catch {
            throw WorkerFailure(.memory, errno: error.errno, detail: detail)
        }
    }

    /// The ring with the queue's socket. Its completions come when this thread enters the kernel for whatever reason, also while it
    /// sleeps in the other ring: so it defers no work to a call of its own.
    private static func makeSocketRing(
        _ submissions: Submissions, _ assignment: QueueAssignment, event: Int32
    ) throws(WorkerFailure) -> Ring {
        var tables = SealedRing.Tables(files: [assignment.socket])
        tables.event = event
        return try SealedRing.make(
            queue: assignment.number, entries: submissions.socketRingEntries, tables: tables,
            seal: assignment.socketSeal, flags: SealedRing.flags & ~IOUring.Setup.deferTaskRun)
    }

    /// Fetches, maps, and serves until the driver aborts all tags.
    private static func serve<Loop: RequestLoop & ~Copyable>(
        _ loop: consuming Loop, _ assignment: QueueAssignment
    ) throws(WorkerFailure) {
        let detail = UInt64(assignment.number)
        // No queue fetches before every queue is ready: a device is fetched as a whole or not at all.
        assignment.rendezvous.waitUntilMayFetch(assignment.number)
        do {
            try loop.fetchAll()
        } catch {
            throw WorkerFailure(.fetch, errno: error.errno, detail: detail)
        }
        do {
            try loop.queue.mapDescriptors(device: WorkerDescriptor.device)
        } catch {
            throw WorkerFailure(.mapDescriptors, errno: error.errno, detail: detail)
        }
        // In memory that nothing gives back: the compiler destroys a variable before the process ends, which would unmap memory,
        // and the filter of the loop kills for that.
        let served = UnsafeMutablePointer<Loop>.allocate(capacity: 1)
        served.initialize(to: loop)
        assignment.rendezvous.reportServing()
        served.pointee.start()
        // From here on it makes only the system calls of stage B: io_uring_enter and exit_group.
        while served.pointee.queue.live > 0 {
            if served.pointee.turn() < 0 {
                served.pointee.leave()
                served.pointee.queue.endProcess()
            }
        }
        if assignment.rendezvous.reportFinished() { _exit(WorkerExit.done) }
        // Other queues still serve. Nothing completes here any more, so this sleeps in the kernel. Only a connection may still
        // be lost.
        while true {
            if served.pointee.turn() < 0, served.pointee.queue.exitStatus != 0 {
                served.pointee.leave()
                served.pointee.queue.endProcess()
            }
        }
    }
}

/// A plain function: the compiler takes a closure in main.swift for the main actor's, and it would trap on another
/// thread.
private func queueThreadMain(_ parcel: UnsafeMutableRawPointer?) -> UnsafeMutableRawPointer? {
    if let parcel { QueueThread.run(parcel) }
    return nil
}
