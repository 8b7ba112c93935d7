import BrokerInterface
import Glibc
import SystemCalls
import Targets

/// The memory of a memory disk: a memfd that the user makes, sealed against any other size. It is the user's until the worker
/// writes to it: the kernel charges a page to the control group of who touches it first, which is the device's.
final class MemoryDisk {
    private let file: FileDescriptor
    private let direct: FileDescriptor?

    private init(_ file: consuming FileDescriptor, _ direct: consuming FileDescriptor?) {
        self.file = file
        self.direct = direct
    }

    /// The files in the order of the interface: the memfd, then the same for direct I/O where tmpfs has that (Linux 6.6).
    var numbers: [Int32] {
        switch direct {
        case .some(let direct): [file.raw, direct.raw]
        case .none: [file.raw]
        }
    }

    static func make(_ plan: AddPlan) throws(CommandFailure) -> MemoryDisk {
        guard !plan.readOnly else {
            throw CommandFailure(
                .usage, "Usage", "a memory disk begins empty, so a read-only one would stay empty",
                remedy: "leave --read-only out")
        }
        guard let size = plan.options.size else {
            throw CommandFailure(
                .usage, "Usage", "a memory disk needs a size", remedy: "give --size, as in --size 512M")
        }
        do throws(SystemError) {
            let file = try SealedMemory.make("ubd-memory", bytes: size)
            // Without the second file I/O works, too, but slower.
            let direct = SealedMemory.waitless(file)
            return MemoryDisk(file, direct)
        } catch {
            throw CommandFailure(
                .failed, "Memory", "a memory disk of \(size) bytes can not be made (\(error))",
                remedy: "give a smaller --size, or free memory")
        }
    }
}
