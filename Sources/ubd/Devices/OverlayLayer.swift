import BrokerInterface
import Glibc
import SystemCalls
import Targets

/// What an overlay is made of beside its base: the layer, and the map that says which blocks are in it. Both begin empty, have no
/// name, and end with the device.
final class OverlayLayer {
    let kind: LayerKind
    private let layer: FileDescriptor
    private let map: FileDescriptor

    private init(_ kind: LayerKind, _ layer: consuming FileDescriptor, _ map: consuming FileDescriptor) {
        self.kind = kind
        self.layer = layer
        self.map = map
    }

    /// In the order of the interface; the base follows.
    var numbers: [Int32] { [layer.raw, map.raw] }

    /// For a device of `size` bytes. In memory when the whole device is no larger than `memory` bytes; else in a file in `scratch`.
    static func make(size: UInt64, memory: UInt64, scratch: String) throws(CommandFailure) -> OverlayLayer {
        let bytes = BlockMap.layerBytes(disk: size)
        let map: FileDescriptor
        do { map = try SealedMemory.make("ubd-map", bytes: BlockMap.bytes(disk: size)) } catch {
            throw noMemory(size, error, "free memory")
        }
        guard size <= memory else { return OverlayLayer(.scratch, try file(bytes, in: scratch), map) }
        do throws(SystemError) {
            let layer = try SealedMemory.make("ubd-layer", bytes: bytes)
            return OverlayLayer(.memory, waitless(layer), map)
        } catch { throw noMemory(size, error, "give a smaller --memory, so that the layer is a file") }
    }

    /// The same file, so that writes of it need no helper thread, where the kernel has that.
    private static func waitless(_ file: consuming FileDescriptor) -> FileDescriptor {
        if let other = SealedMemory.waitless(file) { return other }
        BackingFile.stayWaitless(file)
        return file
    }

    private static func noMemory(_ size: UInt64, _ error: SystemError, _ remedy: String) -> CommandFailure {
        CommandFailure(
            .failed, "Memory", "memory for an overlay of \(size) bytes can not be had (\(error))", remedy: remedy)
    }

    /// O_EXCL: it never gets a name (open(2)).
    private static func file(_ bytes: UInt64, in folder: String) throws(CommandFailure) -> FileDescriptor {
        do throws(SystemError) {
            // O_TMPFILE of fcntl.h, which Swift can't import: __O_TMPFILE | O_DIRECTORY.
            let flags = 0o20_000_000 | O_DIRECTORY | O_RDWR | O_EXCL
            let raw = try call("open") { open(folder.systemPath, flags | O_CLOEXEC, 0o600) }
            let file = FileDescriptor(owning: raw)
            try call("make a file of \(bytes) bytes in \(folder)") { ftruncate(file.raw, off_t(clamping: bytes)) }
            return BackingFile.isInMemory(file) ? waitless(file) : file
        } catch {
            let remedy =
                switch error.errno {
                case EOPNOTSUPP, EISDIR, EINVAL: "its file system has no files without a name: give another --scratch"
                case EACCES, EPERM, EROFS: "give a --scratch that you may write"
                case EFBIG:
                    "its file system has no files of \(bytes) bytes: give another --scratch, or a smaller --size"
                default: "give another --scratch"
                }
            throw CommandFailure(
                .failed, "Scratch", "no scratch file can be made in \(folder): \(SystemError.message(error.errno))",
                remedy: remedy)
        }
    }
}
