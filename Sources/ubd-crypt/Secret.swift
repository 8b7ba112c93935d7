import Dialing
import Glibc
import SystemCalls

/// Memory for a passphrase or a key: kept from swap where the limit allows it, out of core dumps, and wiped at its end.
struct Secret: ~Copyable {
    let memory: UnsafeMutableRawBufferPointer
    /// Bytes of it that are the secret.
    var count = 0

    init(capacity: Int) throws(DialFailure) {
        let pages = mmap(nil, capacity, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0)
        guard let pages, pages != MAP_FAILED else {
            throw DialFailure(
                .host, "no memory for a key: \(SystemError.message(errno))", remedy: "end other programs, and try again"
            )
        }
        if capacity <= Secret.lockedAtOnce { mlock(pages, capacity) }
        madvise(pages, capacity, Int32(MADV_DONTDUMP))
        memory = UnsafeMutableRawBufferPointer(start: pages, count: capacity)
    }

    deinit {
        explicit_bzero(memory.baseAddress!, memory.count)
        munmap(memory.baseAddress!, memory.count)
    }

    /// The rest of the page that the next byte comes into, locked: of a room that is larger than the usual limit of locked memory
    /// (8 MiB) only what is filled is.
    func room() -> UnsafeMutableRawBufferPointer {
        let page = count & ~4095
        let end = min(page + 4096, memory.count)
        mlock(memory.baseAddress! + page, end - page)
        return UnsafeMutableRawBufferPointer(rebasing: memory[count..<end])
    }

    private static let lockedAtOnce = 64 << 10

    var bytes: UnsafePointer<CChar> { UnsafePointer(memory.baseAddress!.assumingMemoryBound(to: CChar.self)) }

    /// The secret in a memfd that nobody can change any more. This copy stays.
    func sealed() throws(DialFailure) -> FileDescriptor {
        do throws(SystemError) {
            let flags = UInt32(MFD_CLOEXEC) | UInt32(MFD_ALLOW_SEALING)
            let file = FileDescriptor(owning: try call("memfd_create") { memfd_create("ubd-key", flags) })
            let written = try call("write a memfd") { write(file.raw, memory.baseAddress, count) }
            guard written == count else { throw SystemError("write a memfd", EIO) }
            try call("seal a memfd") {
                fcntl(file.raw, F_ADD_SEALS, F_SEAL_SEAL | F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE)
            }
            return file
        } catch {
            throw DialFailure(
                .host, "the key can not be handed over: \(error)", remedy: "see 'ulimit -n' and 'free', and try again")
        }
    }
}
