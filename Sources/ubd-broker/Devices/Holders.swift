import CLauncher
import Glibc
import SystemCalls

/// Finds who uses a block device: mounts, swap, devices on top. A program that merely has it open is found by `ubd`,
/// with its user's rights.
///
/// A child reads the table of mounts: it is long when there are thousands of mounts, and reading it can block
/// (docs/kernel-facts.md#mount-table). There is one child at a time, so at most one hangs. Callers that come while it
/// reads share the next child's result, since the present one may miss a newer mount.
final class Holders {
    /// Milliseconds for one reading; ten thousand mounts take 100 ms.
    private static let deadline = 5_000
    /// The number of bytes to process before other events are handled.
    private static let piece = 1 << 16

    private struct Asker {
        let look: DeviceHolders.Look
        let completion: (Holding) -> Void
    }

    /// A child that reads the table, and what it has found so far.
    private final class Reader {
        let process: ProcessHandle
        let pipe: FileDescriptor
        var table: MountTable
        let askers: [Asker]
        var isAnswered = false
        var watches: [EventLoop.Watch] = []
        var timer: EventLoop.Timer?

        init(_ child: ubd_child, _ askers: [Asker]) {
            process = ProcessHandle(pid: child.pid, owning: FileDescriptor(owning: child.pidfd))
            pipe = FileDescriptor(owning: child.report)
            table = MountTable(lookingFor: Set(askers.flatMap(\.look.numbers)))
            self.askers = askers
        }
    }

    private let loop: EventLoop
    private let holders: DeviceHolders
    private let deadline: Int
    /// Starts a child that copies the table of mounts; returns 0 or a negative errno.
    private let start: (inout ubd_child) -> Int32
    private var reader: Reader?
    /// The callers that wait for the next child.
    private var next: [Asker] = []

    init(
        loop: EventLoop, holders: DeviceHolders = DeviceHolders(), deadline: Int = Holders.deadline,
        start: @escaping (inout ubd_child) -> Int32 = { ubd_copy(MountTable.path, &$0) }
    ) {
        self.loop = loop
        self.holders = holders
        self.deadline = deadline
        self.start = start
    }

    /// Determines later whether a disk may be removed. Never opens the disk.
    func ask(_ disk: String, _ completion: @escaping (Holding) -> Void) {
        let look = holders.look(at: disk)
        if case .held = look.holding { return loop.later { completion(look.holding) } }
        // The kernel has no such disk, or did not tell its number.
        if look.numbers.isEmpty { return loop.later { completion(look.holding) } }
        let asker = Asker(look: look, completion: completion)
        if let reader, reader.isAnswered {
            return tell([asker], nil, "the previous reading of the host's mounts has not ended yet")
        }
        next.append(asker)
        if reader == nil { read() }
    }

    private func read() {
        let askers = next
        next = []
        if askers.isEmpty { return }
        var child = ubd_child()
        let result = start(&child)
        guard result == 0 else {
            return tell(askers, nil, "the host's mounts can not be read: \(SystemError.message(-result))")
        }
        let reader = Reader(child, askers)
        self.reader = reader
        do throws(SystemError) {
            let (pipe, process) = (reader.pipe.raw, reader.process.file.raw)
            reader.watches.append(try loop.watch(pipe, .readable) { [unowned self] _ in readPiece(reader) })
            reader.watches.append(try loop.watch(process, .readable) { [unowned self] _ in ended(reader) })
        } catch {
            answer(reader, nil, "\(error)")
            try? reader.process.send(SIGKILL)
            return lookAgain(reader)
        }
        reader.timer = loop.after(milliseconds: deadline) { [unowned self] in
            let seconds = Double(deadline) / 1000
            answer(reader, nil, "the host's mounts could not be read within \(seconds) s")
            try? reader.process.send(SIGKILL)
        }
    }

    /// For a child whose end cannot be watched.
    private func lookAgain(_ reader: Reader) {
        loop.after(milliseconds: 1000) { [unowned self] in
            ended(reader)
            if self.reader === reader { lookAgain(reader) }
        }
    }

    /// Returns false when no more data is available now.
    @discardableResult
    private func readPiece(_ reader: Reader) -> Bool {
        withUnsafeTemporaryAllocation(byteCount: Holders.piece, alignment: 1) { buffer in
            let count = Glibc.read(reader.pipe.raw, buffer.baseAddress, buffer.count)
            if count > 0 { reader.table.read(UnsafeRawBufferPointer(rebasing: buffer[..<count])) }
            if count == 0 { unwatch(reader, reader.pipe.raw) }
            return count > 0
        }
    }

    private func ended(_ reader: Reader) {
        guard let change = try? reader.process.poll() else { return }
        // The rest in the pipe, at most its capacity.
        while readPiece(reader) {}
        switch change {
        case .exited(0) where reader.table.isWhole: answer(reader, reader.table.points, "")
        case .exited(0): answer(reader, nil, "the host's table of mounts is malformed")
        case .exited(let errno):
            answer(reader, nil, "the host's mounts can not be read: \(SystemError.message(errno))")
        default: answer(reader, nil, "the child that reads the host's mounts \(change)")
        }
        loop.cancel(reader.timer)
        for watch in reader.watches { loop.unwatch(watch) }
        reader.watches = []
        self.reader = nil
        read()
    }

    private func unwatch(_ reader: Reader, _ file: Int32) {
        guard let index = reader.watches.firstIndex(where: { $0.fd == file }) else { return }
        loop.unwatch(reader.watches.remove(at: index))
    }

    /// Answers once. After a failure the callers waiting for the next child get the same answer, so that they do not
    /// wait for a child that hangs.
    private func answer(_ reader: Reader, _ points: [String: String]?, _ why: String) {
        if reader.isAnswered { return }
        reader.isAnswered = true
        tell(reader.askers, points, why)
        if points == nil {
            let others = next
            next = []
            tell(others, nil, why)
        }
    }

    private func tell(_ askers: [Asker], _ points: [String: String]?, _ why: String) {
        for asker in askers {
            let holding = asker.look.answer(points: points, why: why)
            loop.later { asker.completion(holding) }
        }
    }
}
