/// What null and loop remember of a request while they work on it, beyond the kernel's descriptor of it, which stays valid
/// until the commit. All zeros unless something out of the ordinary happens: the common path only looks at `troubled`.
struct Request: RequestState {
    /// 1 from the moment something went otherwise than planned to the end of the request.
    var troubled: UInt32 = 0
    /// Bytes moved so far.
    var moved: UInt32 = 0
    /// At least as many bytes as, from the start of the buffer, may be something else than zeros: the lengths of all
    /// writes since then, or-ed together (null target; outlives the request).
    var dirty: UInt32 = 0
    var retries: UInt16 = 0
    /// Where what remains of the request is read from or written to, when it is not where it normally is.
    var detour: Detour = .none

    /// So often a submission that was interrupted is made again.
    static let mostRetries: UInt16 = 16

    mutating func bufferWasFilled(bytes: UInt32) { dirty = max(dirty, bytes) }

    /// Makes it ready for the next request.
    mutating func settle() {
        troubled = 0
        moved = 0
        retries = 0
        detour = .none
    }

    enum Detour: UInt16, BitwiseCopyable {
        case none
        /// Not through the direct file any more.
        case buffered
        /// Not from the file: zeros, since the file has ended (zero copy only).
        case zeroes
        /// It is with the thread that does ranges of a file.
        case board
    }
}
