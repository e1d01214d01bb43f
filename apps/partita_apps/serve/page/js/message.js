/** One message as an element. */
