import Glibc

/// Mapped memory with one owner, which unmaps it.
public struct Mapping: ~Copyable {
    public let base: UnsafeMutableRawPointer
    /// Bytes.
    public let count: Int

    /// Anonymous private memory, zeroed, page-aligned. `locked` keeps it in RAM (counts against RLIMIT_MEMLOCK).
    public static func anonymous(bytes: Int, locked: Bool = false) throws(SystemError) -> Mapping {
        let flags = MAP_PRIVATE | MAP_ANONYMOUS | (locked ? MAP_LOCKED : 0)
        return try Mapping(fd: -1, offset: 0, bytes: bytes, protection: PROT_READ | PROT_WRITE, flags: flags)
    }

    /// Maps a part of a file. `offset` and `bytes` are in bytes.
    public static func shared(
        _ file: Int32, offset: Int, bytes: Int, writable: Bool
    ) throws(SystemError) -> Mapping {
        try Mapping(
            fd: file, offset: offset, bytes: bytes, protection: writable ? PROT_READ | PROT_WRITE : PROT_READ,
            flags: MAP_SHARED | MAP_POPULATE)
    }

    private init(fd: Int32, offset: Int, bytes: Int, protection: Int32, flags: Int32) throws(SystemError) {
        let address = mmap(nil, bytes, protection, flags, fd, off_t(offset))
        guard let address, address != MAP_FAILED else { throw SystemError("mmap", errno) }
        base = address
        count = bytes
    }

    deinit {
        munmap(base, count)
    }
}
