import Glibc
import KernelABI
import Ring

/// Zeros for a read whose buffer only the kernel can reach: a read into it from /dev/zero. In zero-copy mode a positive
/// result completes the whole request, and unfilled bytes would show the reader old memory
/// (docs/kernel-facts.md#short-result).
extension Queue where T.State == Request {
    /// Submits zeros for the bytes from `from` on to the request's end at `length`.
    @inline(never)
    mutating func pushZeroes(_ tag: UInt16, from: UInt32, length: UInt32) {
        push(
            .transfer(
                head: RingFiles.zeroesHead, address: buffer(of: tag) + UInt64(from), length: length - from, offset: 0,
                operationFlags: 0, userData: RequestKey(tag: tag, .data).rawValue, bufferIndex: tag))
    }

    /// The read of zeros ended before the end of the request, or failed: continues it, or ends the request with an
    /// error.
    @inline(never)
    mutating func continueZeroes(_ tag: UInt16, _ result: Int32, length: UInt32) -> Outcome {
        let request = requests + Int(tag)
        request.pointee.troubled = 1
        var outcome = Outcome.pending
        switch result {
        // The length comes from memory that is shared with the kernel, and may be smaller than before.
        case _ where request.pointee.moved >= length: outcome = .failed(EIO)
        case 1...:
            guard let isAll = request.pointee.moved(result, of: length) else {
                outcome = .failed(EIO)
                break
            }
            if isAll { outcome = .done(length) }
        case -EINTR, -EAGAIN:
            if !request.pointee.mayRepeat() { outcome = .failed(EIO) }
        case 0: outcome = .failed(EIO)
        default: outcome = .failed(-result)
        }
        if outcome == .pending {
            pushZeroes(tag, from: request.pointee.moved, length: length)
        } else {
            request.pointee.settle()
        }
        return outcome
    }
}
