import Glibc
import WorkerProtocol

extension ClientFile {
    /// Refuses all but a memfd that has `size` bytes, can be written, and keeps its size: nobody gets more memory than was counted,
    /// and none can be taken away from under a mapping. Only a memfd has these seals, and a memfd that is not on a local file
    /// system (tmpfs) is one of hugetlbfs, which no write(2) reaches.
    func checkIsSealedMemory(size: UInt64) throws(WorkerFailure) {
        let seals = fcntl(descriptor, Seal.get)
        guard seals >= 0, seals & Seal.wanted == Seal.wanted, seals & ~(Seal.wanted | Seal.executable) == 0,
            isWritable, fileSystem?.kind == .local
        else { throw WorkerFailure(.memoryNotSealed, detail: UInt64(bitPattern: Int64(seals))) }
        guard UInt64(clamping: status.st_size) == size else {
            throw WorkerFailure(.memorySize, detail: UInt64(clamping: status.st_size))
        }
    }
}

/// linux/fcntl.h: F_GET_SEALS, F_SEAL_SEAL | F_SEAL_SHRINK | F_SEAL_GROW, and F_SEAL_EXEC (MFD_NOEXEC_SEAL sets it).
private enum Seal {
    static let get: Int32 = 1034
    static let wanted: Int32 = 1 | 2 | 4
    static let executable: Int32 = 0x20
}
