/// The data of null and loop for a request, beyond the kernel's descriptor of it, which stays valid until the commit.
/// All zeros unless something unusual happens: the common path only checks `troubled`.
struct Request: RequestState {
    /// 1 from the first unusual event to the end of the request.
    var troubled: UInt32 = 0
    /// Bytes moved so far.
    var moved: UInt32 = 0
    /// An upper bound of the bytes, from the start of the buffer, that may not be zero: the lengths of all writes since
    /// it was cleared, or-ed together (null target; outlives the request).
    var dirty: UInt32 = 0
    var retries: UInt16 = 0
    /// Where the rest of the request is read from or written to, when this is not the normal file.
    var detour: Detour = .none

    /// How often an interrupted submission is repeated.
    static let mostRetries: UInt16 = 16

    mutating func bufferWasFilled(bytes: UInt32) { dirty = max(dirty, bytes) }

    /// An interrupted submission may be repeated. EAGAIN does not end when the owner has set O_NONBLOCK on the shared open
    /// file, so the repetitions are counted.
    mutating func mayRepeat() -> Bool {
        retries += 1
        return retries <= Request.mostRetries
    }

    /// `bytes` more, at least one, of the request's `length` bytes have moved. True when all have; nil when these are more than
    /// were asked for: the length comes from memory that is shared with the kernel.
    mutating func moved(_ bytes: Int32, of length: UInt32) -> Bool? {
        guard moved < length, UInt32(bytes) <= length - moved else { return nil }
        moved += UInt32(bytes)
        retries = 0
        return moved == length
    }

    /// Resets it for the next request.
    mutating func settle() {
        troubled = 0
        moved = 0
        retries = 0
        detour = .none
    }

    enum Detour: UInt16, BitwiseCopyable {
        case none
        /// The buffered file instead of the direct one.
        case buffered
        /// Zeros instead of the file, which has ended (zero copy only).
        case zeroes
        /// The range thread has it.
        case board
    }
}
