import CShims
import Glibc
import Ring
import SystemCalls
import WorkerProtocol

/// The thread that discards and zeroes ranges of a device's file for all of its queues: see RangeBoard. It is there only where
/// there is a regular file to be written, and sleeps until a range is asked for.
enum RangeThread {
    /// Bytes.
    private static let stackBytes = 64 << 10

    /// Carries what it needs through pthread_create.
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
            // It needs none, so that where the kernel can see to it it makes none.
            let ringless = try forbidFutureRings()
            parcel.rendezvous.reportPrepared(canMakeRings: !ringless)
        } catch {
            return parcel.rendezvous.report(WorkerFailure(.ringSeal, errno: error.errno, detail: .max))
        }
        let work = parcel.work
        // From here on only futex(2) and what the work takes; nothing is allocated.
        parcel.board.serve { kind, offset, bytes in work.perform(kind, offset, bytes) }
    }
}

/// A plain function: closures for threads made in main.swift would be taken for the main actor's, and trap.
private func rangeThreadMain(_ parcel: UnsafeMutableRawPointer?) -> UnsafeMutableRawPointer? {
    if let parcel { RangeThread.run(parcel) }
    return nil
}
