import CShims
import Glibc
import Ring
import SystemCalls
import WorkerProtocol

/// The thread that discards and zeroes ranges of a device's file for all of its queues: see RangeBoard. It exists only
/// for a writable regular file, and sleeps until a range is requested.
enum RangeThread {
    /// Bytes.
    private static let stackBytes = 64 << 10

    /// Carries its data through pthread_create.
    private final class Parcel {
        let board: RangeBoard
        let work: FileRangeWork
        let rendezvous: Rendezvous

        init(_ board: RangeBoard, _ work: FileRangeWork, _ rendezvous: Rendezvous) {
            self.board = board
            self.work = work
            self.rendezvous = rendezvous
        }
    }

    /// Starts it. It never ends; the process does.
    static func start(_ board: RangeBoard, _ work: FileRangeWork, _ rendezvous: Rendezvous) throws(WorkerFailure) {
        let parcel = Unmanaged.passRetained(Parcel(board, work, rendezvous))
        let status = QueueThread.startThread(stackBytes: stackBytes, rangeThreadMain, parcel.toOpaque())
        guard status == 0 else {
            parcel.release()
            throw WorkerFailure(.thread, errno: status, detail: .max)
        }
    }

    fileprivate static func run(_ parcel: UnsafeMutableRawPointer) {
        let parcel = Unmanaged<Parcel>.fromOpaque(parcel).takeRetainedValue()
        pthread_setname_np(pthread_self(), "ubd-ranges")
        do {
            // It needs no ring, so it makes itself unable to make one where the kernel supports that.
            let ringless = try forbidFutureRings()
            parcel.rendezvous.reportPrepared(canMakeRings: !ringless)
        } catch {
            return parcel.rendezvous.report(WorkerFailure(.ringSeal, errno: error.errno, detail: .max))
        }
        let work = parcel.work
        // From here on it makes only futex(2) and the system calls of its work, and allocates nothing.
        parcel.board.serve { kind, offset, bytes in work.perform(kind, offset, bytes) }
    }
}

/// A plain function: the compiler takes a closure in main.swift for the main actor's, and it would trap on another
/// thread.
private func rangeThreadMain(_ parcel: UnsafeMutableRawPointer?) -> UnsafeMutableRawPointer? {
    if let parcel { RangeThread.run(parcel) }
    return nil
}
