import CShims
import Glibc
import KernelABI
import Ring
import SystemCalls
import WorkerProtocol

/// Makes and seals a queue's ring, and tries the seal. Must run on the thread that will use the ring: with
/// SINGLE_ISSUER the kernel accepts no calls of other threads.
package enum SealedRing {
    package static let flags =
        IOUring.Setup.disabled | IOUring.Setup.submitAll | IOUring.Setup.singleIssuer | IOUring.Setup.deferTaskRun
        | IOUring.Setup.cooperativeTaskRun

    /// The kernel's helper threads per queue: those that wait for the file (fsync, fallocate, writes that would block),
    /// and those for everything else. They count against RLIMIT_NPROC.
    static let fileWorkers: UInt32 = 8
    static let otherWorkers: UInt32 = 2

    /// The tables that a ring gets before it is sealed.
    package struct Tables {
        /// The file table; -1 is an empty slot.
        package var files: [Int32] = []
        /// Slots for the pages of requests; 0 without zero copy.
        package var bufferSlots: UInt32 = 0
        /// Memory and number of the entries of a ring of provided buffers; only in batch mode.
        package var bufferRing: (memory: UnsafeMutableRawPointer, entries: UInt32)?

        /// An eventfd(2) that the kernel signals when there are completions; -1: none.
        package var event: Int32 = -1

        /// The processors of the kernel's helper threads, one bit for each; empty: any processor. By default the kernel
        /// does not restrict them to the processors of the process (io_uring_register(2), IORING_REGISTER_IOWQ_AFF).
        package var helperProcessors: [UInt64] = []

        /// The processors that the calling thread may use; empty when the kernel does not report them.
        package static func processorsOfThread() -> [UInt64] {
            // Room for 8192 processors.
            var words = [UInt64](repeating: 0, count: 128)
            let count = ubd_thread_cpus(&words, words.count)
            return count > 0 ? Array(words.prefix(count)) : []
        }

        package init(files: [Int32] = []) { self.files = files }
    }

    /// `detail` of a failure is the queue. Without a seal only for programs that are not workers:
    /// Benchmarks/system/bare.
    package static func make(
        queue: UInt16, entries: UInt32, tables: Tables, seal: RingSeal?, flags: UInt32 = SealedRing.flags
    ) throws(WorkerFailure) -> Ring {
        do {
            var ring = try Ring(entries: max(entries, 4), completions: max(entries, 4) * 2, flags: flags)
            if !tables.files.isEmpty { try ring.register(files: tables.files) }
            if tables.bufferSlots > 0 { try ring.registerBufferTable(slots: tables.bufferSlots) }
            if let (memory, entries) = tables.bufferRing {
                try ring.registerBufferRing(memory: memory, entries: entries)
            }
            if tables.event >= 0 { try ring.register(event: tables.event) }
            if !tables.helperProcessors.isEmpty { try ring.placeWorkers(on: tables.helperProcessors) }
            try ring.limitWorkers(bounded: fileWorkers, unbounded: otherWorkers)
            // Before the restrictions, which would forbid it.
            try ring.registerIndex()
            if let seal { try ring.restrict(to: seal) }
            try ring.enable()
            ring.closeDescriptor()
            if let seal, try probe(&ring, seal) != nil { throw WorkerFailure(.ringSeal, detail: UInt64(queue)) }
            return ring
        } catch let failure as WorkerFailure {
            throw failure
        } catch let error as SystemError {
            throw WorkerFailure(.ring, errno: error.errno, detail: UInt64(queue))
        } catch {
            throw WorkerFailure(.ring, detail: UInt64(queue))
        }
    }

    /// A forbidden operation that the kernel allowed.
    package enum Hole: Equatable {
        case operation(UInt8, result: Int32)
        case registration(UInt32, result: Int)
    }

    /// Tries what the seal forbids: an operation that is not listed, one without a required flag, one with a flag that
    /// is not allowed, and a registration. The kernel must refuse all four with EACCES. Returns the first one that it
    /// did not.
    package static func probe(_ ring: inout Ring, _ seal: RingSeal) throws(SystemError) -> Hole? {
        let attempts = forbiddenEntries(seal)
        let key = RequestKey(tag: 0, .probe).rawValue
        for attempt in attempts {
            ring.push(SubmissionEntry(operation: attempt.operation, flags: attempt.flags, file: 0, userData: key))
        }
        var seen = 0
        while seen < attempts.count {
            let status = ring.submit(waitingFor: UInt32(attempts.count - seen))
            if status < 0, status != -Int(EINTR) { throw SystemError("probe the ring's seal", Int32(-status)) }
            var batch = ring.completions()
            while let completion = batch.take() {
                if completion.result != -EACCES {
                    return .operation(attempts[min(seen, attempts.count - 1)].operation, result: completion.result)
                }
                seen += 1
            }
            ring.finish(batch)
        }
        let candidates = [IOUring.Register.personality, IOUring.Register.files]
        guard let operation = candidates.first(where: { !seal.registerOperations.contains(UInt8($0)) }) else {
            return nil
        }
        let result = ring.probeRegister(operation)
        return result == -Int(EACCES) ? nil : .registration(operation, result: result)
    }

    private static func forbiddenEntries(_ seal: RingSeal) -> [(operation: UInt8, flags: UInt8)] {
        var attempts: [(operation: UInt8, flags: UInt8)] = []
        let harmless = [IOUring.Operation.nop, IOUring.Operation.asyncCancel, IOUring.Operation.openAt]
        if let unlisted = harmless.first(where: { !seal.operations.contains($0) }) {
            attempts.append((unlisted, seal.flagsRequired))
        }
        if let listed = seal.operations.first {
            if seal.flagsRequired != 0 { attempts.append((listed, 0)) }
            let known = seal.flagsAllowed | seal.flagsRequired
            let more = [IOUring.EntryFlags.async, IOUring.EntryFlags.link].first { known & $0 == 0 }
            if let more { attempts.append((listed, seal.flagsRequired | more)) }
        }
        return attempts
    }
}
